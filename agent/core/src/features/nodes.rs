//! The other nodes and their pods' networks.

use std::net::Ipv4Addr;

use podwire_common::abi;

use super::Scope;
use crate::ipsec;
use crate::model::{Mode, Model, Node, Path};
use crate::slice::{Route, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    if let Some(own) = &model.own {
        for node in scope.nodes(model) {
            add_remote(&mut slice, model, own, node);
        }
    }
    slice
}

fn add_remote(slice: &mut Slice, model: &Model, own: &Node, node: &Node) {
    slice.tables.tunnel_peers.insert(node.address.into(), node.id());
    // A node that is unreachable now keeps its entries, with the first uplink as its path. Without
    // them the programs would drop packets that still arrive from its addresses, and would take
    // packets to these addresses for packets to the world.
    let fallback = model.uplinks().next().map(|uplink| Path {
        device: uplink.index,
        mtu: uplink.mtu,
        gateway: Some(Ipv4Addr::UNSPECIFIED.into()),
    });
    let Some(path) = model.paths.get(&node.address).copied().or(fallback) else {
        return;
    };
    let on_link = if path.gateway.is_none() { abi::NODE_ON_LINK } else { 0 };
    let vtep = node.vtep_mac.filter(|_| model.mode == Mode::Vxlan);
    let vtep_entry = vtep.map(|mac| (node.address.into(), abi::Vtep { mac, reserved: [0; 2] }));
    slice.tables.vteps.extend(vtep_entry);
    let of_vtep = if vtep.is_some() { abi::NODE_VTEP } else { 0 };
    let of_policies = ipsec::of_node(model, own, node);
    let entry = |flags| abi::Node {
        tunnel_endpoint: node.address.into(),
        source: model.underlay_address(own).into(),
        uplink: path.device,
        mtu: model.mode.payload(path.mtu),
        node_id: node.id(),
        flags: flags | on_link | of_vtep | of_policies,
    };
    slice.tables.nodes.insert(node.pod_network.into(), entry(abi::NODE_POD_NETWORK));
    for address in node.addresses() {
        slice.tables.nodes.insert(address.into(), entry(abi::NODE_ADDRESS));
    }

    // A node without Podwire's programs replies by its own routes. If this node sent from its
    // InternalIP, the reply would come outside the tunnel. This node would drop it there, because
    // the source is a pod's address. So the source is the overlay address.
    let source = if vtep.is_some() { Some(own.overlay_address()) } else { model.route_source(own) };
    let route = match (model.mode, model.vxlan) {
        (Mode::Vxlan, Some(device)) => Some(Route::Link { device, gateway: None, source }),
        // The agent makes no route to a node behind a router: it cannot know which router has
        // routes to pods. The host's own routes must lead to that node's pods.
        (Mode::Direct, _) if path.gateway.is_none() => {
            Some(Route::Link { device: path.device, gateway: Some(node.address), source })
        }
        _ => None,
    };
    slice.routes.extend(route.map(|route| (node.pod_network, route)));
}
