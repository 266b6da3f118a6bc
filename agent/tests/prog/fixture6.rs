//! IPv6 on a node of these tests.

use std::net::Ipv6Addr;

use podwire_common::addr::Mac;
use podwire_core::model::{Mode, Model, Node, Path as Way, PodAddress};
use xtask::lab::is_kernel_since;

use crate::fixture::{Fixture, NODE2_MAC};

pub const POD: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2);
pub const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 3);
pub const OVERLAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1);
pub const REMOTE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 2);
pub const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);
/// The node's address on the uplink.
pub const NODE1_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 1);
pub const NODE2_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 2);
pub const NODE3_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 3);
/// A host on the node's link.
pub const STRANGER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 0x99);
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Returns a node with pods of IPv6 only. The nodes' addresses are of IPv4.
pub fn node(mode: Mode) -> Fixture {
    let mut fixture = Fixture::new(mode);
    let model = &mut fixture.model;
    nodes(model).for_each(|node| node.pod_networks.clear());
    model.endpoints.values_mut().for_each(|endpoint| endpoint.pod_addresses.clear());
    add_pod_network(model);
    fixture.fill();
    fixture
}

/// Returns the three nodes, by their numbers.
fn nodes(model: &mut Model) -> impl Iterator<Item = &mut Node> {
    model.own.iter_mut().chain(model.remote.values_mut())
}

fn add_pod_network(model: &mut Model) {
    for (number, node) in (1..).zip(nodes(model)) {
        node.pod_networks.push(format!("fd00:10:244:{number}::/64").parse().unwrap());
    }
    for (endpoint, address) in model.endpoints.values_mut().zip([POD, NEIGHBOUR]) {
        endpoint.pod_addresses.push(PodAddress { address: address.into(), gateway: OVERLAY.into() });
    }
    model.links[0].addresses.push(NODE1_6.into());
}

/// Returns a node with pods of both families.
pub fn dual(mode: Mode) -> Fixture {
    let mut fixture = Fixture::new(mode);
    make_dual(&mut fixture);
    fixture
}

/// Adds IPv6 to a node, its pods and its neighbours, and default routes of both families. The
/// tunnel stays one of IPv4.
pub fn make_dual(fixture: &mut Fixture) {
    add_ipv6(fixture);
    for link in ["up0", "pwa", "pwb"] {
        forward(link);
    }
    add_addresses(fixture);
    fixture.namespace.ip(&format!(
        "route add default via 10.200.0.2 dev up0\n\
         route add fd00:10:244:2::/64 via {NODE2_6} dev up0 src {NODE1_6}\n\
         route add default via {NODE2_6} dev up0 src {NODE1_6}\n"
    ));
}

/// Adds IPv6 to what the programs know of a node, its pods and its neighbours.
pub fn add_ipv6(fixture: &mut Fixture) {
    let model = &mut fixture.model;
    add_pod_network(model);
    for (node, address) in nodes(model).zip([NODE1_6, NODE2_6, NODE3_6]) {
        node.internal_addresses.push(address.into());
    }
    for node in [NODE2_6, NODE3_6] {
        model.paths.insert(node.into(), Way { device: fixture.uplink, mtu: 1500, gateway: None });
    }
    fixture.fill();
}

/// Turns IPv6 on for a link of the calling thread's namespace.
pub fn forward(link: &str) {
    for (switch, value) in [("disable_ipv6", "0"), ("forwarding", "1")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{switch}"), value).unwrap();
    }
}

/// Gives the uplink its address, and node 2 its link address.
pub fn add_addresses(node: &Fixture) {
    let mac = Mac { bytes: NODE2_MAC };
    node.namespace.ip(&format!(
        "address add {NODE1_6}/64 dev up0 nodad\n\
         neigh add {NODE2_6} lladdr {mac:?} dev up0 nud permanent\n"
    ));
}

/// Gives the node's uplink an IPv6 address, and a route to node 2's pods. For forwarded packets
/// the kernel looks at the MTU of an IPv6 route only if it is locked (`ip6_mtu_from_fib6`).
pub fn route_ipv6(node: &Fixture) {
    forward("up0");
    add_addresses(node);
    node.namespace.ip(&format!("route add fd00:10:244:2::/64 via {NODE2_6} dev up0 mtu lock 1400"));
}

/// Returns whether the kernel lets a program remove outer headers of another family than the inner
/// packet's.
pub fn takes_off_other_families() -> bool {
    is_kernel_since(6, 3)
}
