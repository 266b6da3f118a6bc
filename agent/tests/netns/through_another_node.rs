//! Sources that the other nodes do not know: outside clients routed through a node, and a node's
//! VIPs.

use std::net::{IpAddr, Ipv4Addr};

use podwire_common::names::maps;
use podwire_common::reason::Path::{SnatIn, StackToTunnel};
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod};

use crate::check::{Row, check};
use crate::snat::ask;
use crate::sockets::{udp, wait_until};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 200, 0, 100));

#[test]
fn the_world_reaches_a_pod_by_way_of_another_node() {
    let lab = Lab::builder().build().unwrap();
    let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    lab.underlay().ip(&format!("route add 10.244.0.0/16 via {}\n", lab.node(0).address())).unwrap();
    let world = (lab.world(), lab.world_address());
    check(
        &lab,
        &[
            Row::new("a pod of another node", world, (&far, far.address()))
                .seen_as(lab.node(0).gateway())
                .takes(&[(0, StackToTunnel), (0, SnatIn)]),
            Row::new("a pod of the node itself", world, (&near, near.address())),
        ],
    );
}

#[test]
fn a_node_talks_to_remote_pods_from_all_its_addresses() {
    let lab = Lab::builder().node_file().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    node.add_address("eth0", VIP, 32).unwrap();
    assert_eq!(seen_as(node, &far, 7001), node.gateway(), "a VIP");

    // Make the VIP an InternalIP, which the other nodes know.
    let mut list = lab.node_list().unwrap();
    let addresses = list["items"][0]["status"]["addresses"].as_array_mut().unwrap();
    addresses.push(json!({ "type": "InternalIP", "address": VIP }));
    lab.write_node_list(&list.to_string()).unwrap();
    let named = |node: &Node| node.map_dump(maps::NODES).unwrap().to_string().contains("10,200,0,100");
    assert!(wait_until(|| named(lab.node(1)).then_some(())).is_some(), "{}", lab.node(1).agent_log_tail(20));
    let seen = wait_until(|| (seen_as(node, &far, 7002) == VIP).then_some(()));
    assert!(seen.is_some(), "an InternalIP: {}", seen_as(node, &far, 7003));

    // Pods reach the node by this address, too.
    let server = udp(node, (VIP, 7004));
    let client = udp(&far, ("0.0.0.0", 0));
    let seen = ask(&client, &server, (VIP, 7004).into(), "a second InternalIP");
    assert_eq!(seen.ip(), far.address());
}

#[test]
fn an_internal_address_of_two_nodes_is_nobodys() {
    let lab = Lab::builder().node_file().build().unwrap();
    let far = lab.node(1).add_pod("far").unwrap();
    let mut list = lab.node_list().unwrap();
    for node in 0..2 {
        let addresses: &mut Value = &mut list["items"][node]["status"]["addresses"];
        addresses.as_array_mut().unwrap().push(json!({ "type": "InternalIP", "address": VIP }));
    }
    lab.write_node_list(&list.to_string()).unwrap();
    lab.node(0).add_address("eth0", VIP, 32).unwrap();
    for node in lab.nodes() {
        crate::sweep::comes(node, "node-problem", "10.200.0.100");
    }
    assert_eq!(seen_as(lab.node(0), &far, 7001), lab.node(0).gateway());
}

/// Returns the source that a pod sees when a node's process sends from the VIP and this port.
fn seen_as(node: &Node, pod: &Pod, port: u16) -> IpAddr {
    let server = udp(pod, ("0.0.0.0", port));
    let client = udp(node, (VIP, port));
    ask(&client, &server, (pod.address(), port).into(), "from the VIP").ip()
}
