//! Sources that the other nodes do not know: outside clients routed through a node, and a node's
//! VIPs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_common::names::maps;
use podwire_common::reason::Path::{SnatIn, StackToTunnel};
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod};

use crate::check::{Row, check};
use crate::snat::ask;
use crate::sockets::{udp, unspecified, wait_until};

/// One of each family, with its bytes as a map's dump has them.
const VIPS: [(IpAddr, &str); 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 200, 0, 100)), "10,200,0,100"),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 0x100)), "253,0,0,16,2,0,0,0,0,0,0,0,0,0,1,0"),
];

#[test]
fn the_world_reaches_a_pod_by_way_of_another_node() {
    let lab = Lab::builder().build().unwrap();
    let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    for (family, pods) in ["10.244.0.0/16", "fd00:10:244::/48"].into_iter().enumerate() {
        lab.underlay().ip(&format!("route add {pods} via {}\n", lab.node(0).addresses()[family])).unwrap();
        let world = (lab.world(), lab.world_addresses()[family]);
        // No router fragments IPv6.
        let row = |name, server| match (Row::new(name, world, server), family) {
            (row, 0) => row,
            (row, _) => row.learns_mtu(),
        };
        check(
            &lab,
            &[
                row("a pod of another node", (&far, far.addresses()[family]))
                    .seen_as(lab.node(0).overlay_addresses()[family])
                    .takes(&[(0, StackToTunnel), (0, SnatIn)]),
                row("a pod of the node itself", (&near, near.addresses()[family])),
            ],
        );
    }
}

#[test]
fn a_node_talks_to_remote_pods_from_all_its_addresses() {
    let lab = Lab::builder().node_file().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    add_vips(node);
    assert_eq!(seen_as(node, &far, 7001), node.overlay_addresses(), "VIPs");

    // Make the VIPs InternalIPs, which the other nodes know.
    let mut list = lab.node_list().unwrap();
    add_internal(&mut list["items"][0]);
    lab.write_node_list(&list.to_string()).unwrap();
    let named = |node: &Node| {
        let nodes = node.map_dump(maps::NODES).unwrap().to_string();
        VIPS.iter().all(|(_, bytes)| nodes.contains(bytes))
    };
    assert!(wait_until(|| named(lab.node(1)).then_some(())).is_some(), "{}", lab.node(1).agent_log_tail(20));
    let vips = VIPS.map(|(vip, _)| vip);
    let seen = wait_until(|| (seen_as(node, &far, 7002) == vips).then_some(()));
    assert!(seen.is_some(), "InternalIPs: {:?}", seen_as(node, &far, 7003));

    // Pods reach the node by these addresses, too.
    for (vip, address) in vips.into_iter().zip(far.addresses()) {
        let server = udp(node, (vip, 7004));
        let client = udp(&far, (unspecified(vip), 0));
        let seen = ask(&client, &server, (vip, 7004).into(), "a second InternalIP");
        assert_eq!(seen.ip(), *address);
    }
}

#[test]
fn an_internal_address_of_two_nodes_is_nobodys() {
    let lab = Lab::builder().node_file().build().unwrap();
    let far = lab.node(1).add_pod("far").unwrap();
    let mut list = lab.node_list().unwrap();
    list["items"].as_array_mut().unwrap().iter_mut().for_each(add_internal);
    lab.write_node_list(&list.to_string()).unwrap();
    add_vips(lab.node(0));
    for node in lab.nodes() {
        for (vip, _) in VIPS {
            crate::sweep::comes(node, "node-problem", &vip.to_string());
        }
    }
    assert_eq!(seen_as(lab.node(0), &far, 7001), lab.node(0).overlay_addresses());
}

fn add_vips(node: &Node) {
    node.ip(&VIPS.map(|(vip, _)| format!("address add {vip} dev eth0 nodad\n")).concat()).unwrap();
}

/// Gives a Node object the VIPs as further InternalIPs.
fn add_internal(node: &mut Value) {
    let addresses = node["status"]["addresses"].as_array_mut().unwrap();
    addresses.extend(VIPS.map(|(vip, _)| json!({ "type": "InternalIP", "address": vip })));
}

/// Returns the sources, one of each family, that a pod sees when a node's process sends from the
/// VIPs and this port.
fn seen_as(node: &Node, pod: &Pod, port: u16) -> Vec<IpAddr> {
    let ask_from = |((vip, _), address): ((IpAddr, &str), &IpAddr)| {
        let server = udp(pod, (unspecified(vip), port));
        let client = udp(node, (vip, port));
        ask(&client, &server, SocketAddr::new(*address, port), "from the VIP").ip()
    };
    VIPS.into_iter().zip(pod.addresses()).map(ask_from).collect()
}
