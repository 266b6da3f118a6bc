//! This node: its uplinks, its own addresses and its podCIDR.

use std::net::IpAddr;

use podwire_common::abi;
use podwire_common::addr::Addr;

use super::Scope;
use crate::model::{Model, Node};
use crate::slice::{Hooks, Programs, Route, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    if scope.is_all() {
        let filtered = model.filtered_uplinks.iter();
        let programs = |device: &String| Programs { hooks: Hooks::Uplink, device: device.clone() };
        slice.programs.extend(filtered.map(|(index, device)| (*index, programs(device))));
    }
    if let Some(own) = model.own.as_ref().filter(|_| scope.is_all()) {
        add_uplinks(&mut slice, model, own);
        add_own(&mut slice, model, own);
    }
    slice
}

fn add_uplinks(slice: &mut Slice, model: &Model, own: &Node) {
    let underlay = model.underlay_address(own).into();
    for uplink in &model.uplinks {
        let ipv4 = uplink.addresses.first().map_or(Addr::UNSPECIFIED, |address| (*address).into());
        let entry = abi::Uplink { ipv4, tunnel_address: underlay, mtu: uplink.mtu, reserved: 0 };
        slice.tables.uplinks.insert(uplink.index, entry);
    }
    if let (Some(device), Some(mtu)) = (model.vxlan, model.fitting_mtu()) {
        let (ipv4, tunnel_address) = (own.overlay_address().into(), Addr::UNSPECIFIED);
        slice.tables.uplinks.insert(device, abi::Uplink { ipv4, tunnel_address, mtu, reserved: 0 });
    }
}

fn add_own(slice: &mut Slice, model: &Model, own: &Node) {
    let entry = |flags| abi::Node {
        tunnel_endpoint: own.address.into(),
        source: model.underlay_address(own).into(),
        uplink: 0,
        mtu: model.pod_mtu().unwrap_or_default(),
        node_id: own.id(),
        flags: flags | abi::NODE_LOCAL,
    };
    let nodes = &mut slice.tables.nodes;
    nodes.insert(own.pod_network.into(), entry(abi::NODE_POD_NETWORK));
    let uplink_addresses = model.uplinks.iter().flat_map(|uplink| &uplink.addresses);
    let others = model.other_addresses.iter().filter(|address| !is_of_cluster(model, own, **address));
    for address in uplink_addresses.chain(others).copied() {
        let named = if own.addresses().any(|named| named == address) { abi::NODE_NAMED } else { 0 };
        nodes.insert(address.into(), entry(abi::NODE_ADDRESS | named));
    }
    let overlay = entry(abi::NODE_ADDRESS | abi::NODE_OVERLAY | abi::NODE_NAMED);
    nodes.insert(own.overlay_address().into(), overlay);
    // A dead pod's address must not follow the default route into the world.
    slice.routes.insert(own.pod_network, Route::Unreachable);
}

/// Whether an address is another node's or a pod's, whoever else bears it: a bridge of an earlier network may.
fn is_of_cluster(model: &Model, own: &Node, address: IpAddr) -> bool {
    let is_of = |node: &Node| {
        node.pod_network.contains(&address) || node.addresses().any(|of_node| of_node == address)
    };
    own.pod_network.contains(&address) || model.remote.values().any(is_of)
}
