//! Names of what packets have numbers of.

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::Model;

use crate::events::Names;

/// Returns the names that a model has.
pub(super) fn of(model: &Model) -> Names {
    let mut names = Names::default();
    for endpoint in model.endpoints.values() {
        names.add_endpoint(endpoint);
    }
    for node in model.own.iter().chain(model.remote.values()) {
        names.add_node(&node.name, &node.internal_addresses);
    }
    names.links.extend(model.links.iter().map(|link| (link.index, link.name.clone())));
    names.links.extend(model.vxlan.map(|index| (index, VXLAN_DEVICE.to_owned())));
    names
}
