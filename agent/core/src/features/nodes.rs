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
    let tunnel = model.tunnel_between(own, node);
    if model.mode == Mode::Vxlan && tunnel.is_none() {
        return;
    }
    // The other node may prefer another family.
    slice.tables.tunnel_peers.extend(node.first_addresses().map(|address| (address.into(), node.id())));
    let tunnel = tunnel.filter(|_| model.mode == Mode::Vxlan);
    // Flannel's device of IPv4 has this address.
    let vtep = node.vtep_mac.filter(|_| tunnel.is_some_and(|(_, there)| there.is_ipv4()));
    for family in Family::ALL {
        // Inside the tunnel, both families travel between the same addresses.
        let ends = tunnel.or_else(|| Some((own.address_of(family)?, node.address_of(family)?)));
        let next_hop = ends.map(|(_, there)| there);
        let Some(path) = path_to(model, next_hop) else {
            return;
        };
        let (here, there) = ends.unwrap_or((own.first_address(), node.first_address()));
        let on_link = if path.gateway.is_none() { abi::NODE_ON_LINK } else { 0 };
        let of_vtep = if vtep.is_some() { abi::NODE_VTEP } else { 0 };
        let of_policies = ipsec::of_node(model, own, node);
        let is_ipv6_tunnel = tunnel.is_some_and(|(_, there)| there.is_ipv6());
        let of_tunnel = if is_ipv6_tunnel { abi::NODE_TUNNEL_IPV6 } else { 0 };
        let entry = |flags| abi::Node {
            tunnel_endpoint: there.into(),
            source: model.present_address(here).into(),
            uplink: path.device,
            mtu: model.mode.payload(path.mtu, Family::of(there)),
            node_id: node.id(),
            flags: flags | on_link | of_vtep | of_policies | of_tunnel,
        };
        let networks = node.pod_networks.iter().filter(|network| Family::of(network.addr()) == family);
        for network in networks {
            slice.tables.nodes.insert((*network).into(), entry(abi::NODE_POD_NETWORK));
            // Without a podCIDR of its own, this node takes no part in the pod network of the family.
            if own.overlay_address(family).is_some() {
                let route = route(model, own, vtep, family, next_hop, path);
                slice.routes.extend(route.map(|route| (*network, route)));
            }
        }
        for address in node.addresses().filter(|address| Family::of(*address) == family) {
            slice.tables.nodes.insert(address.into(), entry(abi::NODE_ADDRESS));
        }
    }
    if let (Some(mac), Some((_, there))) = (vtep, tunnel) {
        slice.tables.vteps.insert(there.into(), abi::Vtep { mac, reserved: [0; 2] });
    }
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
