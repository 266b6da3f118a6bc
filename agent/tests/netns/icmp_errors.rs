//! ICMP errors: a pod may send one only about a packet that it received, and only to that packet's
//! sender.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use podwire_common::names::VXLAN_PORT;
use podwire_common::reason::Drop;
use serde_json::json;
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Ns, Pod, traffic};

use crate::check::drops;
use crate::headers::of_pods;
use crate::packets::{Packet, Transport, behind_ethernet, tcp, udp};
use crate::packets6::Packet6;
use crate::refused::{Row, refused};
use crate::sockets::{self, listen, unspecified, wait_until};
use crate::{FAMILIES, ip_tables, world_end};

/// By family: "fragmentation needed" (the next hop takes 552 bytes), and "packet too big" (1280).
const NEEDED: [Transport; 2] = [
    Transport::Icmp { kind: 3, code: 4, word: [0, 0, 2, 40] },
    Transport::Icmp { kind: 2, code: 0, word: [0, 0, 5, 0] },
];
const PORT_UNREACHABLE: [Transport; 2] =
    [Transport::Icmp { kind: 3, code: 3, word: [0; 4] }, Transport::Icmp { kind: 1, code: 4, word: [0; 4] }];
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
        // The end of a connection would change the counters that `refused` compares.
        let connections = FAMILIES.map(|family| check_refusals(&lab, &liar, &victim, &far, family));
        for (client, accepted) in connections {
            crate::snat::assert_alive(&client, &accepted, "the other pod's connection");
        }
    }
}

/// Checks what the liar sends with its address of a family. Returns the victim's connection to the
/// world.
fn check_refusals(lab: &Lab, liar: &Pod, victim: &Pod, far: &Pod, family: usize) -> (TcpStream, TcpStream) {
    let [own, victim_address, far_address] = [liar, victim, far].map(|pod| pod.addresses()[family]);
    let [node1, node2] = [0, 1].map(|node| lab.node(node).addresses()[family]);
    let (world, gateway) = (world_end(lab, family).1, lab.node(0).overlay_addresses()[family]);
    let what = format!("{:?} by {own}", lab.mode());
    let server = listen(lab.world(), (unspecified(world), PORTS.1));
    let client = sockets::connect_from(victim, (unspecified(world), PORTS.0), (world, PORTS.1)).unwrap();
    let (accepted, _) = server.accept().unwrap();
    let between_nodes = traffic::tcp_stream(victim, far, far_address, 8080).unwrap();
    between_nodes.wait_for(1 << 20).unwrap();

    let says = |destination, transport: &Transport, quoted: &[u8]| {
        let macs = [liar.host_mac(), liar.eth0_mac()];
        frame(macs, (own, destination), transport, Some(behind_ethernet(quoted)))
    };
    let packet = |from, to, transport: Transport| frame([[0; 6]; 2], (from, to), &transport, None);
    let needed = |destination, quoted: Vec<u8>| says(destination, &NEEDED[family], &quoted);
    let answer = |to| packet(world, to, tcp(PORTS.1, PORTS.0));
    let request = |from| packet(from, world, tcp(PORTS.0, PORTS.1));
    let tunnel = |from, to| packet(from, to, udp(50000, VXLAN_PORT));
    let unreachable = says(world, &PORT_UNREACHABLE[family], &answer(victim_address));
    let reason = Drop::IcmpErrorNotOwned;
    let rows: Vec<Row<'_>> = vec![
        ("to the world, another pod's answer", needed(world, answer(victim_address)), reason),
        ("the same, unreachable", unreachable, reason),
        ("to the world, an answer as it saw it", needed(world, answer(node1)), reason),
        ("to its node, a pod's request as the world sees it", needed(node1, request(node1)), reason),
        ("to a pod here, its request", needed(victim_address, request(victim_address)), reason),
        (
            "to a remote pod, what it sent to another",
            needed(far_address, packet(far_address, victim_address, tcp(1, 2))),
            reason,
        ),
        ("to its node, its tunnel", needed(node1, tunnel(node1, node2)), reason),
        ("to the other node, its tunnel", needed(node2, tunnel(node2, node1)), reason),
        ("to its gateway, its tunnel", needed(gateway, tunnel(gateway, node2)), reason),
        ("to its node, a tunnel to the pod's remote end", needed(node1, tunnel(node1, far_address)), reason),
        ("to its node, what the world sent to it", needed(node1, packet(world, own, udp(1, 2))), reason),
    ];
    let capture = Capture::start(lab.world(), "eth0").unwrap();
    // The stream must not change the counters that `refused` compares.
    between_nodes.finish().unwrap();
    refused(lab, 0, (liar, "eth0"), &rows);
    assert_eq!(of_pods(&capture.finish().unwrap()), None, "{what}");
    for (node, other) in [(0, node2), (1, node1)] {
        assert_eq!(path_mtu(lab.node(node), other), None, "{what}");
    }
    (client, accepted)
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
        for family in FAMILIES {
            let own = SocketAddr::new(pod.addresses()[family], CLOSED);
            let host_port = SocketAddr::new(lab.node(0).addresses()[family], 9088);
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
                assert!(is_refused(ns, to), "{mode:?}, {who}: no error about the closed {to} came");
            }
        }
        for node in lab.nodes() {
            assert!(drops(node).is_empty(), "{mode:?}: {:?}", drops(node));
        }
    }
}

#[test]
fn a_pod_tells_of_packets_too_large_for_what_it_forwards_to() {
    const BEHIND: [(&str, &str, u8); 2] =
        [("192.168.7.1", "192.168.7.2", 24), ("fd00:192:168:7::1", "fd00:192:168:7::2", 64)];
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let pod = lab.node(0).add_pod("gateway").unwrap();
        let behind = lab.add_namespace("behind").unwrap();
        xtask::lab::connect(&pod, "inside", &behind, "eth0").unwrap();
        pod.ip("link set inside mtu 1280\n").unwrap();
        for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            pod.sysctl(switch, "1").unwrap();
        }
        let near = lab.node(0).add_pod("near").unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        for (family, (inside, address, length)) in BEHIND.into_iter().enumerate() {
            pod.add_address("inside", inside.parse().unwrap(), length).unwrap();
            behind.add_address("eth0", address.parse().unwrap(), length).unwrap();
            behind.ip(&format!("route add default via {inside}\n")).unwrap();
            ip_tables(
                &pod,
                family,
                &format!("-t nat -A PREROUTING -i eth0 -j DNAT --to-destination {address}"),
            );
            let to = pod.addresses()[family];
            let _server = sockets::udp(&behind, (unspecified(to), 5000));
            for client in [&near, &far] {
                let socket = sockets::udp(client, (unspecified(to), 0));
                let told = wait_until(|| {
                    socket.send_to(&[7; 1400], (to, 5000)).ok();
                    path_mtu(client, to).filter(|mtu| *mtu == 1280)
                });
                assert!(told.is_some(), "{mode:?}: {} has not learnt the MTU to {to}", client.name());
            }
        }
    }
}

/// Returns a frame with an IP packet of the addresses' family. `macs`: destination and source.
pub fn frame(
    [destination_mac, source_mac]: [[u8; 6]; 2],
    ends: (IpAddr, IpAddr),
    transport: &Transport,
    payload: Option<Vec<u8>>,
) -> Vec<u8> {
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = Packet::new(from, to, transport.clone()).macs(destination_mac, source_mac);
            packet.payload = payload.unwrap_or(packet.payload);
            packet.build()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = Packet6::new(from, to, transport.clone()).macs(destination_mac, source_mac);
            packet.payload = payload.unwrap_or(packet.payload);
            packet.build()
        }
        _ => panic!("{ends:?} are of two families"),
    }
}

/// Returns whether a connected socket learns that no socket listens.
fn is_refused(from: &Ns, to: SocketAddr) -> bool {
    let socket = sockets::udp(from, (unspecified(to.ip()), 0));
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
