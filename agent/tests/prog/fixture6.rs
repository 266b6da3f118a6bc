//! IPv6 on a node of these tests.

use std::net::Ipv6Addr;

use podwire_core::model::{Mode, PodAddress};

use crate::fixture::Fixture;

pub const POD: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 2);
pub const NEIGHBOUR: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 3);
pub const OVERLAY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1);
pub const REMOTE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 2, 0, 0, 0, 2);
pub const WORLD6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 10);
/// The node's address on the uplink.
pub const NODE1_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 1);
pub const NODE2_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 2);
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Returns a node with IPv6 pods.
pub fn node(mode: Mode) -> Fixture {
    let mut fixture = Fixture::new(mode);
    let model = &mut fixture.model;
    let network = |number: u8| format!("fd00:10:244:{number}::/64").parse().unwrap();
    model.own.as_mut().unwrap().pod_networks = vec![network(1)];
    for (name, number) in [("node2", 2), ("node3", 3)] {
        model.remote.get_mut(name).unwrap().pod_networks = vec![network(number)];
    }
    for (endpoint, address) in model.endpoints.values_mut().zip([POD, NEIGHBOUR]) {
        endpoint.pod_addresses = vec![PodAddress { address: address.into(), gateway: OVERLAY.into() }];
    }
    model.links[0].addresses.push(NODE1_6.into());
    fixture.fill();
    fixture
}

/// Gives the node's uplink an IPv6 address, and a route to node 2's pods. For forwarded packets
/// the kernel looks at the MTU of an IPv6 route only if it is locked (`ip6_mtu_from_fib6`).
pub fn route_ipv6(node: &Fixture) {
    for (switch, value) in [("disable_ipv6", "0"), ("forwarding", "1")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/up0/{switch}"), value).unwrap();
    }
    for change in [
        "-6 addr add fd00:10:200::1/64 dev up0 nodad",
        "-6 neigh add fd00:10:200::2 lladdr 02:00:00:00:0c:02 dev up0 nud permanent",
        "-6 route add fd00:10:244:2::/64 via fd00:10:200::2 dev up0 mtu lock 1400",
    ] {
        node.namespace.ip(change);
    }
}
