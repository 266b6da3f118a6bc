//! Names of what packets have numbers of.

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::Model;

use crate::events::Names;

/// Returns the names that a model has.
pub(super) fn of(model: &Model) -> Names {
    let mut names = Names::default();
    for endpoint in model.endpoints.values() {
        names.links.insert(endpoint.ifindex, endpoint.host_interface.clone());
        let Some(pod) = &endpoint.pod else { continue };
        let name = format!("{}/{}", pod.namespace, pod.name);
        names.pods.extend(endpoint.addresses().map(|address| (address, name.clone())));
    }
    for node in model.own.iter().chain(model.remote.values()) {
        names.nodes.extend(node.internal_addresses.iter().map(|address| (*address, node.name.clone())));
    }
    names.links.extend(model.links.iter().map(|link| (link.index, link.name.clone())));
    names.links.extend(model.vxlan.map(|index| (index, VXLAN_DEVICE.to_owned())));
    names
}
