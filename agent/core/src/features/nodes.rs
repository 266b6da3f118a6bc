//! The other nodes and their pods' networks.

use std::net::{IpAddr, Ipv4Addr};

use podwire_common::abi;
use podwire_common::addr::Mac;

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
    for family in Family::ALL {
        // Unless the node runs flannel, both families travel between the same addresses.
        let tunnel = match (model.mode, model.tunnel_between(own, node, family)) {
            (Mode::Direct, _) => None,
            (Mode::Vxlan, None) => return,
            (Mode::Vxlan, tunnel) => tunnel,
        };
        add_family(slice, model, own, node, family, tunnel);
    }
    // The other node may prefer another family.
    slice.tables.tunnel_peers.extend(node.first_addresses().map(|address| (address.into(), node.id())));
}

/// Adds the part of one family. `tunnel`: its ends, if there is one.
fn add_family(
    slice: &mut Slice,
    model: &Model,
    own: &Node,
    node: &Node,
    family: Family,
    tunnel: Option<(IpAddr, IpAddr)>,
) {
    let ends = tunnel.or_else(|| Some((own.address_of(family)?, node.address_of(family)?)));
    let next_hop = ends.map(|(_, there)| there);
    let Some(path) = path_to(model, next_hop) else {
        return;
    };
    let (here, there) = ends.unwrap_or((own.first_address(), node.first_address()));
    let vtep = tunnel.and_then(|_| node.vtep_macs.get(&Family::of(there)).copied());
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let common = ipsec::of_node(model, own, node, (here, there))
        | flag(abi::NODE_ON_LINK, path.gateway.is_none())
        | flag(abi::NODE_VTEP, vtep.is_some())
        | flag(abi::NODE_TUNNEL_IPV6, tunnel.is_some() && there.is_ipv6());
    let entry = |flags| abi::Node {
        tunnel_endpoint: there.into(),
        source: model.present_address(here).into(),
        uplink: path.device,
        mtu: model.mode.payload(path.mtu, Family::of(there), family),
        node_id: node.id(),
        flags: flags | common,
    };
    if let Some(network) = node.pod_network(family) {
        slice.tables.nodes.insert(network.into(), entry(abi::NODE_POD_NETWORK));
        // Without a podCIDR of its own, this node takes no part in the pod network of the family.
        if own.pod_network(family).is_some() {
            let route = route(model, own, vtep, family, next_hop, path);
            slice.routes.extend(route.map(|route| (network, route)));
        }
    }
    for address in node.addresses().filter(|address| Family::of(*address) == family) {
        slice.tables.nodes.insert(address.into(), entry(abi::NODE_ADDRESS));
    }
    slice.tables.vteps.extend(vtep.map(|mac| (there.into(), abi::Vtep { mac, reserved: [0; 2] })));
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
    vtep: Option<Mac>,
    family: Family,
    next_hop: Option<IpAddr>,
    path: Path,
) -> Option<Route> {
    // A node without Podwire's programs replies by its own routes. If this node sent from its
    // InternalIP, the reply would come outside the tunnel. This node would drop it there, because
    // the source is a pod's address. So the source is the overlay address.
    let source = match vtep {
        Some(_) => own.overlay_address(family),
        None => model.route_source(own, family),
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
