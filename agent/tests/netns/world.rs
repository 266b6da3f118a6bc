//! Pods and the world outside the cluster.

use podwire_common::names::maps;
use podwire_common::reason::Path::{SnatIn, SnatOut};
use xtask::lab::frames::Capture;
use xtask::lab::{Families, Lab, Mode};

use crate::check::{Counted, Row, check};
use crate::headers::{ends, of_pods};
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
    for families in [Families::Dual, Families::V6Only] {
        let lab = Lab::builder().mode(mode).families(families).build().unwrap();
        let pods = [0, 1].map(|node| lab.node(node).add_pod("client").unwrap());
        let capture = Capture::start(lab.world(), "eth0").unwrap();
        for (family, address) in lab.world_addresses().into_iter().enumerate() {
            let row = |node: usize| {
                let pod = (&*pods[node], pods[node].addresses()[family]);
                let row = Row::new("pod to the world", pod, (lab.world(), address))
                    .seen_as(lab.node(node).addresses()[family]);
                // The world's link takes more than the pods' links in VXLAN mode.
                Row { learns_mtu: mode == Mode::Vxlan, ..row }
            };
            let rows =
                [row(0).takes(&[(0, SnatOut), (0, SnatIn)]), row(1).takes(&[(1, SnatOut), (1, SnatIn)])];
            check(&lab, &rows);
        }
        let frames = capture.finish().unwrap();
        let ends: Vec<_> = frames.iter().filter_map(|frame| ends(frame)).collect();
        for address in lab.world_addresses() {
            assert!(ends.iter().any(|(_, destination)| *destination == address), "{ends:?}");
        }
        assert_eq!(of_pods(&frames), None, "a pod's address reached the world");
    }
}
