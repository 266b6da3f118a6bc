//! Pods and the world outside the cluster.

use podwire_common::names::maps;
use podwire_common::reason::Path::{SnatIn, SnatOut};
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode};

use crate::check::{Counted, Row, check};
use crate::headers::Ip;
use crate::sockets::udp;

#[test]
fn the_world_sees_a_pod_as_its_node_in_vxlan_mode() {
    the_world_sees_a_pod_as_its_node(Mode::Vxlan);
}

#[test]
fn the_world_sees_a_pod_as_its_node_in_direct_routing() {
    the_world_sees_a_pod_as_its_node(Mode::Direct);
}

#[test]
fn pods_with_one_port_reach_one_server_under_different_ports() {
    let lab = Lab::builder().build().unwrap();
    let pods = ["one", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
    let server = udp(lab.world(), "0.0.0.0:53");
    let seen = pods.each_ref().map(|pod| {
        let client = udp(pod, "0.0.0.0:40000");
        client.connect((lab.world_address(), 53)).unwrap();
        client.send(pod.name().as_bytes()).unwrap();
        let mut buffer = [0; 100];
        let (length, peer) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], pod.name().as_bytes());
        (client, peer)
    });
    assert_eq!(seen[0].1.ip(), lab.node(0).address());
    assert_eq!(seen[1].1.ip(), lab.node(0).address());
    assert_ne!(seen[0].1.port(), seen[1].1.port());
    // Answer in the opposite order: each answer finds its own pod.
    for ((client, peer), pod) in seen.iter().zip(&pods).rev() {
        server.send_to(pod.name().as_bytes(), peer).unwrap();
        let mut buffer = [0; 100];
        let length = client.recv(&mut buffer).unwrap_or_else(|error| {
            let translations = lab.node(0).map_dump(maps::TRANSLATIONS).unwrap();
            panic!("answer to {peer}: {error}; {}; {translations}", Counted::now(&lab))
        });
        assert_eq!(&buffer[..length], pod.name().as_bytes());
    }
}

fn the_world_sees_a_pod_as_its_node(mode: Mode) {
    let lab = Lab::builder().mode(mode).build().unwrap();
    let pods = [0, 1].map(|node| lab.node(node).add_pod("client").unwrap());
    let capture = Capture::start(lab.world(), "eth0").unwrap();
    let row = |node: usize| {
        let address = lab.world_address();
        Row::new("pod to the world", (&pods[node], pods[node].address()), (lab.world(), address))
            .seen_as(lab.node(node).address())
    };
    check(&lab, &[row(0).takes(&[(0, SnatOut), (0, SnatIn)]), row(1).takes(&[(1, SnatOut), (1, SnatIn)])]);
    let frames = capture.finish().unwrap();
    let packets: Vec<Ip<'_>> = frames.iter().filter_map(|frame| Ip::of_frame(frame)).collect();
    assert!(!packets.is_empty());
    let bare = packets.iter().find(|packet| packet.is_of_pod_network());
    assert!(bare.is_none(), "a pod's address reached the world: {bare:?}");
}
