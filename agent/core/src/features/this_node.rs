//! This node: its uplinks, its own addresses and its podCIDR.

use std::net::IpAddr;

use podwire_common::abi;
use podwire_common::addr::Addr;

use super::Scope;
use crate::model::{Family, Model, Node, Role};
use crate::slice::{Programs, Route, Slice};

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    if scope.is_all() {
        let filtered = model.links.iter().filter_map(|link| {
            let device = model.filtered_links.get(&link.index)?.clone();
            Some((link.index, Programs { hooks: link.hooks(), device }))
        });
        slice.programs.extend(filtered);
    }
    if let Some(own) = model.own.as_ref().filter(|_| scope.is_all()) {
        add_links(&mut slice, model, own);
        add_own(&mut slice, model, own);
    }
    slice
}

fn add_links(slice: &mut Slice, model: &Model, own: &Node) {
    let none = Addr::UNSPECIFIED;
    let (links, links6) = (&mut slice.tables.links, &mut slice.tables.links6);
    let underlay =
        |family| own.address_of(family).map_or(none, |internal| model.present_address(internal).into());
    let entry =
        |kind, ipv4, mtu| abi::Link { ipv4, tunnel_address: none, mtu, kind, refused: 0, reserved: 0 };
    for link in &model.links {
        let address_of = |family| link.address_of(family).map_or(none, Addr::from);
        let ipv4 = address_of(Family::V4);
        let (kind, [tunnel_address, tunnel_address6]) = match link.role {
            Role::Uplink => (abi::LINK_UPLINK, Family::ALL.map(underlay)),
            Role::Side => (abi::LINK_SIDE, [none; 2]),
            Role::Inner => (abi::LINK_INNER, [none; 2]),
        };
        let of_role = abi::Link { tunnel_address, ..entry(kind, ipv4, link.mtu) };
        let has_programs = !model.without_programs.contains(&link.index);
        let bare = entry(abi::LINK_WITHOUT_PROGRAMS, none, link.mtu);
        links.insert(link.index, if has_programs { of_role } else { bare });
        let ipv6 = abi::Link6 { source: address_of(Family::V6), tunnel_address: tunnel_address6 };
        if has_programs && ipv6 != (abi::Link6 { source: none, tunnel_address: none }) {
            links6.insert(link.index, ipv6);
        }
    }
    for (index, link) in &model.links_without_role {
        let kind = if link.is_sink { abi::LINK_SINK } else { abi::LINK_WITHOUT_PROGRAMS };
        links.insert(*index, entry(kind, none, link.mtu));
    }
    if let (Some(device), Some(mtu)) = (model.vxlan, model.fitting_mtu()) {
        let ipv4 = own.overlay_address(Family::V4).map_or(none, Addr::from);
        links.insert(device, entry(abi::LINK_OVERLAY, ipv4, mtu));
        let ipv6 = |address: IpAddr| abi::Link6 { source: address.into(), tunnel_address: none };
        links6.extend(own.overlay_address(Family::V6).map(|address| (device, ipv6(address))));
    }
}

fn add_own(slice: &mut Slice, model: &Model, own: &Node) {
    let entry = |flags| abi::Node {
        tunnel_endpoint: own.first_address().into(),
        source: model.present_address(own.first_address()).into(),
        uplink: 0,
        mtu: model.pod_mtu().unwrap_or_default(),
        node_id: own.id(),
        flags: flags | abi::NODE_LOCAL,
    };
    let of_address = |address: IpAddr, flags| {
        let node_ports = if model.has_node_ports(address) { 0 } else { abi::NODE_WITHOUT_NODE_PORTS };
        (address.into(), entry(flags | abi::NODE_ADDRESS | node_ports))
    };
    let nodes = &mut slice.tables.nodes;
    let uplink_addresses = model.uplinks().flat_map(|uplink| &uplink.addresses);
    let others = model.other_addresses.iter().filter(|address| !is_of_cluster(model, own, **address));
    for address in uplink_addresses.chain(others).copied() {
        let named = if own.addresses().any(|named| named == address) { abi::NODE_NAMED } else { 0 };
        nodes.extend([of_address(address, named)]);
    }
    // The tunnel's device also has the gateways of pods from an earlier podCIDR, and the kernel may
    // send to these pods with such an address.
    let gateways = model.endpoints.values().flat_map(|pod| &pod.pod_addresses).map(|pod| pod.gateway);
    let earlier = gateways.filter(|gateway| model.vxlan.is_some() && !is_of_cluster(model, own, *gateway));
    nodes.extend(earlier.map(|gateway| of_address(gateway, abi::NODE_OVERLAY)));
    let named = |address| of_address(address, abi::NODE_OVERLAY | abi::NODE_NAMED);
    nodes.extend(own.overlay_addresses().map(named));
    for network in &own.pod_networks {
        nodes.insert((*network).into(), entry(abi::NODE_POD_NETWORK));
        // A packet to a dead pod's address must not follow the default route into the world.
        slice.routes.insert(*network, Route::Unreachable);
    }
}

/// Returns whether an address is another node's or a pod's. A device of this node may have it as
/// well: a bridge of an earlier network, for example.
fn is_of_cluster(model: &Model, own: &Node, address: IpAddr) -> bool {
    let is_of = |node: &Node| node.has_pod(address) || node.addresses().any(|of_node| of_node == address);
    own.has_pod(address) || model.remote.values().any(is_of)
}
