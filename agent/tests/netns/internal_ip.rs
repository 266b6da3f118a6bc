//! Nodes with an InternalIP that is on no link: behind a cloud's one-to-one NAT, or after DHCP has
//! changed an address.

use std::net::IpAddr;

use podwire_common::reason::Path::{TunnelIn, TunnelOut};
use xtask::lab::{Lab, Mode, Node, traffic};

use crate::check::{Row, check};
use crate::sweep::{comes, conditions, goes};

#[test]
fn a_node_behind_one_to_one_nat_reaches_and_is_reached() {
    let lab = Lab::builder().router(true).agents(false).build().unwrap();
    let node = lab.node(0);
    // The node has 10.200.1.9. The network knows it by its InternalIP, 10.200.1.1.
    let (internal, own) = (node.address(), IpAddr::from([10, 200, 1, 9]));
    node.ip(&format!(
        "address delete {internal}/24 dev eth0\naddress add {own}/24 dev eth0\nroute replace default via 10.200.1.254\n"
    ))
    .unwrap();
    let rules = format!(
        "table ip cloud {{ chain in {{ type nat hook prerouting priority dstnat; ip daddr {internal} dnat to {own}; }}; \
         chain out {{ type nat hook postrouting priority srcnat; ip saddr {own} snat to {internal}; }}; }}"
    );
    lab.underlay().exec(&["nft", &rules]).unwrap();
    lab.nodes().iter().try_for_each(Node::start_agent).unwrap();
    comes(node, "internal-ip-absent", &own.to_string());
    let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    let ways = [(0, TunnelOut), (1, TunnelIn), (1, TunnelOut)];
    check(
        &lab,
        &[
            Row::new("out", (&near, near.address()), (&far, far.address())).takes(&ways),
            Row::new("in", (&far, far.address()), (&near, near.address())).takes(&ways),
        ],
    );
}

#[test]
fn an_internal_address_that_goes_and_comes_is_told() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let (one, two) = (node.add_pod("one").unwrap(), node.add_pod("two").unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let internal = node.address();
        node.ip(&format!(
            "address delete {internal}/24 dev eth0\naddress add 10.200.0.51/24 dev eth0\nroute replace default via 10.200.0.254\n"
        ))
        .unwrap();
        comes(node, "internal-ip-absent", "10.200.0.51");
        // No other condition is reported, and the node's pods keep their network.
        assert_eq!(conditions(node).len(), 1, "{mode:?}: {:?}", conditions(node));
        traffic::tcp_exchange(&one, &two, two.address(), 8080, 1 << 20).unwrap();
        let three = node.add_pod("three").unwrap();
        traffic::tcp_exchange(&one, &three, three.address(), 8080, 1 << 20).unwrap();
        traffic::tcp_exchange(&one, lab.world(), lab.world_address(), 8080, 1 << 20).unwrap();
        node.ip(&format!("address delete 10.200.0.51/24 dev eth0\naddress add {internal}/24 dev eth0\nroute replace default via 10.200.0.254\n")).unwrap();
        goes(node, "internal-ip-absent");
        traffic::tcp_exchange(&one, &far, far.address(), 8080, 1 << 20).unwrap();
    }
}
