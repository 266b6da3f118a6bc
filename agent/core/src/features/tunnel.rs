//! The VXLAN device.

use ipnet::IpNet;
use podwire_common::names::VXLAN_DEVICE;

use super::Scope;
use crate::model::{Model, Node};
use crate::slice::{Hooks, Link, Programs, Slice};

/// Returns the desired state of the VXLAN device.
///
/// The host masquerades some packets into the tunnel. The device has the overlay addresses so that
/// these packets get a source to which replies come back. It also has the gateway addresses of pods
/// from an earlier podCIDR, as long as these pods live.
pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    let Some(device) = model.vxlan.filter(|_| scope.is_all()) else {
        return slice;
    };
    slice.programs.insert(device, Programs { hooks: Hooks::Overlay, device: VXLAN_DEVICE.into() });
    if let Some(mtu) = model.fitting_mtu() {
        let pods = model.endpoints.values().flat_map(|endpoint| &endpoint.pod_addresses);
        let gateways = pods.map(|of_family| of_family.gateway);
        let own = model.own.iter().flat_map(Node::overlay_addresses);
        let addresses = own.chain(gateways).map(IpNet::from).collect();
        slice.links.insert(device, Link { name: VXLAN_DEVICE.into(), mtu, mac: None, up: true, addresses });
    }
    slice
}
