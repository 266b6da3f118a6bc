//! Nodes with an InternalIP that is on no link: behind a cloud's one-to-one NAT, or after DHCP has
//! changed an address.

use std::net::IpAddr;

use podwire_common::reason::Path::{TunnelIn, TunnelInDevice, TunnelOut, TunnelOutDevice};
use xtask::lab::{Lab, Mode, Node, traffic};

use crate::check::{Row, check};
use crate::sweep::{comes, conditions, goes};
use crate::{FAMILIES, Place as _, reach, world_end};

#[test]
fn a_node_behind_one_to_one_nat_reaches_and_is_reached() {
    for tunnel in FAMILIES {
        let arguments = ["--tunnel-family", ["ipv4", "ipv6"][tunnel]];
        let lab = Lab::builder().router(true).agents(false).agent_arguments(&arguments).build().unwrap();
        let node = lab.node(0);
        // The node has the addresses that end in 9. The network knows it by its InternalIPs.
        let own = ["10.200.1.9", "fd00:10:200:1::9"].map(|own| own.parse::<IpAddr>().unwrap());
        for (own, internal) in own.into_iter().zip(node.addresses()) {
            let (length, gateway, name) = match own {
                IpAddr::V4(_) => (24, "10.200.1.254", "ip"),
                IpAddr::V6(_) => (64, "fd00:10:200:1::254", "ip6"),
            };
            node.ip(&format!("address delete {internal}/{length} dev eth0\n")).unwrap();
            node.add_address("eth0", own, length).unwrap();
            node.ip(&format!("route replace default via {gateway} dev eth0\n")).unwrap();
            let rules = format!(
                "table {name} cloud {{ chain in {{ type nat hook prerouting priority dstnat; {name} daddr {internal} dnat to {own}; }}; \
                 chain out {{ type nat hook postrouting priority srcnat; {name} saddr {own} snat to {internal}; }}; }}"
            );
            lab.underlay().exec(&["nft", &rules]).unwrap();
        }
        lab.nodes().iter().try_for_each(Node::start_agent).unwrap();
        own.iter().for_each(|own| drop(comes(node, "internal-ip-absent", &own.to_string())));
        let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        for family in FAMILIES {
            // The programs leave IPv4 in a tunnel of IPv6 to the VXLAN device.
            let ways = match (tunnel, family) {
                (1, 0) => [(0, TunnelOutDevice), (1, TunnelInDevice), (1, TunnelOutDevice)],
                _ => [(0, TunnelOut), (1, TunnelIn), (1, TunnelOut)],
            };
            check(
                &lab,
                &[
                    Row::new("out", near.end(family), far.end(family)).takes(&ways),
                    Row::new("in", far.end(family), near.end(family)).takes(&ways),
                ],
            );
        }
    }
}

#[test]
fn an_internal_address_that_goes_and_comes_is_told() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let (one, two) = (node.add_pod("one").unwrap(), node.add_pod("two").unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        for family in FAMILIES {
            let internal = node.addresses()[family];
            let (other, length, gateway) =
                [("10.200.0.51", 24, "10.200.0.254"), ("fd00:10:200::51", 64, "fd00:10:200::254")][family];
            let replace = |gone: IpAddr, comes: IpAddr| {
                node.ip(&format!("address delete {gone}/{length} dev eth0\n")).unwrap();
                node.add_address("eth0", comes, length).unwrap();
                node.ip(&format!("route replace default via {gateway} dev eth0\n")).unwrap();
            };
            let other = other.parse().unwrap();
            replace(internal, other);
            comes(node, "internal-ip-absent", &other.to_string());
            // No other condition is reported, and the node's pods keep their network.
            assert_eq!(conditions(node).len(), 1, "{mode:?}: {:?}", conditions(node));
            reach(&one, &two);
            let three = node.add_pod(&format!("three{family}")).unwrap();
            reach(&one, &three);
            for family in FAMILIES {
                let (world, address) = world_end(&lab, family);
                traffic::tcp_exchange(&one, world, address, 8080, 1 << 20).unwrap();
            }
            replace(other, internal);
            goes(node, "internal-ip-absent");
            reach(&one, &far);
        }
    }
}
