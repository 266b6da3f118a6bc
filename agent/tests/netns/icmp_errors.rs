//! ICMP errors: a pod may send one only about a packet that it received, and only to that packet's
//! sender.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use podwire_common::names::VXLAN_PORT;
use podwire_common::reason::Drop;
use serde_json::json;
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Ns, traffic};

use crate::check::drops;
use crate::headers::Ip;
use crate::packets::{Packet, Transport, behind_ethernet, tcp, udp};
use crate::refused::{Row, refused};
use crate::sockets::{self, listen, wait_until};
use crate::v4;

/// "Fragmentation needed": the next hop takes 552 bytes.
const NEEDED: Transport = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 2, 40] };
const PORT_UNREACHABLE: Transport = Transport::Icmp { kind: 3, code: 3, word: [0; 4] };
/// A port on which no socket listens.
const CLOSED: u16 = 9;
/// The other pod's port, and the server's port.
const PORTS: (u16, u16) = (40000, 443);

#[test]
fn a_pod_sends_no_error_about_what_others_were_sent() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let [liar, victim] = ["liar", "victim"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let server = listen(lab.world(), ("0.0.0.0", PORTS.1));
        let server_address = (lab.world_address(), PORTS.1);
        let client = sockets::connect_from(&victim, ("0.0.0.0", PORTS.0), server_address).unwrap();
        let (accepted, _) = server.accept().unwrap();
        let between_nodes = traffic::tcp_stream(&victim, &far, far.address(), 8080).unwrap();
        between_nodes.wait_for(1 << 20).unwrap();

        let [node1, node2] = [0, 1].map(|node| v4(lab.node(node).address()));
        let [own, victim_address, far_address, world, gateway] =
            [liar.address(), victim.address(), far.address(), lab.world_address(), liar.gateway()].map(v4);
        let says = |destination, transport: &Transport, quoted: &Packet| {
            Packet::new(own, destination, transport.clone())
                .macs(liar.host_mac(), liar.eth0_mac())
                .with(|error| error.payload = behind_ethernet(&quoted.build()))
                .build()
        };
        let needed = |destination, quoted| says(destination, &NEEDED, &quoted);
        let answer = |to| Packet::new(world, to, tcp(PORTS.1, PORTS.0));
        let request = |from| Packet::new(from, world, tcp(PORTS.0, PORTS.1));
        let tunnel = |from, to| Packet::new(from, to, udp(50000, VXLAN_PORT));
        let reason = Drop::IcmpErrorNotOwned;
        let rows: Vec<Row<'_>> = vec![
            ("to the world, another pod's answer", needed(world, answer(victim_address)), reason),
            ("the same, unreachable", says(world, &PORT_UNREACHABLE, &answer(victim_address)), reason),
            ("to the world, an answer as it saw it", needed(world, answer(node1)), reason),
            ("to its node, a pod's request as the world sees it", needed(node1, request(node1)), reason),
            ("to a pod here, its request", needed(victim_address, request(victim_address)), reason),
            (
                "to a remote pod, what it sent to another",
                needed(far_address, Packet::new(far_address, victim_address, tcp(1, 2))),
                reason,
            ),
            ("to its node, its tunnel", needed(node1, tunnel(node1, node2)), reason),
            ("to the other node, its tunnel", needed(node2, tunnel(node2, node1)), reason),
            ("to its gateway, its tunnel", needed(gateway, tunnel(gateway, node2)), reason),
            (
                "to its node, a tunnel to the pod's remote end",
                needed(node1, tunnel(node1, far_address)),
                reason,
            ),
            (
                "to its node, what the world sent to it",
                needed(node1, Packet::new(world, own, udp(1, 2))),
                reason,
            ),
        ];
        let capture = Capture::start(lab.world(), "eth0").unwrap();
        // The stream must not change the counters that `refused` compares.
        between_nodes.finish().unwrap();
        refused(&lab, 0, (&liar, "eth0"), &rows);
        let seen = capture.finish().unwrap();
        let leaked = seen.iter().filter_map(|frame| Ip::of_frame(frame)).find(Ip::is_of_pod_network);
        assert!(leaked.is_none(), "{mode:?}: {leaked:?}");
        for (node, other) in [(0, 1), (1, 0)] {
            let other = lab.node(other).address().to_string();
            let route = lab.node(node).exec(&["ip", "route", "get", &other]).unwrap();
            assert!(!route.contains("mtu"), "{mode:?}: {route}");
        }
        crate::snat::assert_alive(&client, &accepted, "the other pod's connection");
    }
}

#[test]
fn a_pods_closed_port_is_told_by_every_way() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let mapping =
            json!({"portMappings": [{"hostPort": 9088, "containerPort": CLOSED, "protocol": "udp"}]});
        let pod = lab.node(0).add_pod_with("pod", &mapping).unwrap();
        let near = lab.node(0).add_pod("near").unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let own = SocketAddr::new(pod.address(), CLOSED);
        let host_port = SocketAddr::new(lab.node(0).address(), 9088);
        let table: [(&str, &Ns, SocketAddr); 9] = [
            ("a pod here", &near, own),
            ("a pod of another node", &far, own),
            ("its node", lab.node(0), own),
            ("another node", lab.node(1), own),
            ("the world by the hostPort", lab.world(), host_port),
            ("a pod here by the hostPort", &near, host_port),
            ("a pod of another node by the hostPort", &far, host_port),
            ("another node by the hostPort", lab.node(1), host_port),
            ("the pod itself by the hostPort", &pod, host_port),
        ];
        for (who, ns, to) in table {
            assert!(is_refused(ns, to), "{mode:?}, {who}: no error about the closed port came");
        }
        for node in lab.nodes() {
            assert!(drops(node).is_empty(), "{mode:?}: {:?}", drops(node));
        }
    }
}

#[test]
fn a_pod_tells_of_packets_too_large_for_what_it_forwards_to() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let pod = lab.node(0).add_pod("gateway").unwrap();
        let behind = lab.add_namespace("behind").unwrap();
        xtask::lab::connect(&pod, "inside", &behind, "eth0").unwrap();
        pod.sysctl("net/ipv4/ip_forward", "1").unwrap();
        pod.ip("address add 192.168.7.1/24 dev inside\nlink set inside mtu 1280").unwrap();
        behind.ip("address add 192.168.7.2/24 dev eth0\nroute add default via 192.168.7.1").unwrap();
        crate::service::iptables(&pod, "-t nat -A PREROUTING -i eth0 -j DNAT --to-destination 192.168.7.2");
        let near = lab.node(0).add_pod("near").unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let _server = sockets::udp(&behind, "0.0.0.0:5000");
        for client in [&near, &far] {
            let socket = sockets::udp(client, "0.0.0.0:0");
            let told = wait_until(|| {
                socket.send_to(&[7; 1400], (pod.address(), 5000)).ok();
                path_mtu(client, pod.address()).filter(|mtu| *mtu == 1280)
            });
            assert!(told.is_some(), "{mode:?}: {} has not learnt the MTU", client.name());
        }
    }
}

/// Returns whether a connected socket learns that no socket listens.
fn is_refused(from: &Ns, to: SocketAddr) -> bool {
    let socket = sockets::udp(from, (Ipv4Addr::UNSPECIFIED, 0));
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let refusal = || {
        let outcome = socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 10]));
        outcome.err().filter(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    (0..20).any(|_| refusal().is_some())
}

/// Returns the path MTU that a namespace has learnt.
pub fn path_mtu(from: &Ns, to: IpAddr) -> Option<u32> {
    let route = from.exec(&["ip", "route", "get", &to.to_string()]).unwrap();
    let mtu = route.split(" mtu ").nth(1).and_then(|rest| rest.split_whitespace().next());
    mtu.map(|mtu| mtu.parse().unwrap())
}
