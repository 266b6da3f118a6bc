//! The other nodes and their pods' networks.

use std::net::{IpAddr, Ipv4Addr};

use podwire_common::abi;

use super::Scope;
use crate::ipsec;
use crate::model::{Family, Mode, Model, Node, Path};
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
    let vtep = node.vtep_mac.filter(|_| model.mode == Mode::Vxlan);
    for family in Family::ALL {
        // Inside the tunnel, both families travel to the node's address of the underlay.
        let next_hop = match model.mode {
            Mode::Vxlan => Some(node.address),
            Mode::Direct => node.address_of(family),
        };
        let Some(path) = path_to(model, next_hop) else {
            return;
        };
        let on_link = if path.gateway.is_none() { abi::NODE_ON_LINK } else { 0 };
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
        let networks = node.pod_networks.iter().filter(|network| Family::of(network.addr()) == family);
        for network in networks {
            slice.tables.nodes.insert((*network).into(), entry(abi::NODE_POD_NETWORK));
            // Without a podCIDR of its own, this node takes no part in the pod network of the family.
            if own.overlay_address(family).is_some() {
                let route = route(model, own, node, family, next_hop, path);
                slice.routes.extend(route.map(|route| (*network, route)));
            }
        }
        for address in node.addresses().filter(|address| Family::of(*address) == family) {
            slice.tables.nodes.insert(address.into(), entry(abi::NODE_ADDRESS));
        }
    }
    let vtep_entry = vtep.map(|mac| (node.address.into(), abi::Vtep { mac, reserved: [0; 2] }));
    slice.tables.vteps.extend(vtep_entry);
}

/// Returns the path to a node. A node that is unreachable now keeps its entries, with the first
/// uplink as its path. Without them the programs would drop packets that still arrive from its
/// addresses, and would take packets to these addresses for packets to the world.
fn path_to(model: &Model, next_hop: Option<IpAddr>) -> Option<Path> {
    let fallback = || {
        model.uplinks().next().map(|uplink| Path {
            device: uplink.index,
            mtu: uplink.mtu,
            gateway: Some(Ipv4Addr::UNSPECIFIED.into()),
        })
    };
    next_hop.and_then(|next_hop| model.paths.get(&next_hop).copied()).or_else(fallback)
}

/// Returns this node's route to another node's pods.
fn route(
    model: &Model,
    own: &Node,
    node: &Node,
    family: Family,
    next_hop: Option<IpAddr>,
    path: Path,
) -> Option<Route> {
    // A node without Podwire's programs replies by its own routes. If this node sent from its
    // InternalIP, the reply would come outside the tunnel. This node would drop it there, because
    // the source is a pod's address. So the source is the overlay address.
    let source = match node.vtep_mac {
        Some(_) if model.mode == Mode::Vxlan => own.overlay_address(family),
        _ => model.route_source(own, family),
    };
    match (model.mode, model.vxlan) {
        (Mode::Vxlan, Some(device)) => Some(Route::Link { device, gateway: None, source }),
        // The agent makes no route to a node behind a router: it cannot know which router has
        // routes to pods. The host's own routes must lead to that node's pods.
        (Mode::Direct, _) if path.gateway.is_none() => {
            Some(Route::Link { device: path.device, gateway: next_hop, source })
        }
        _ => None,
    }
}
