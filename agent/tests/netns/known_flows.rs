//! A known flow ends when anything that it depends on changes. The very next packet no longer
//! follows it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podwire_common::names::maps;
use podwire_common::reason::{Drop, Path};
use serde_json::json;
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, traffic};

use crate::check::{Counted, drops};
use crate::headers::Ip;
use crate::host_ports::mappings;
use crate::packets::{self, Packet, Vxlan, inner};
use crate::refused::{OTHER_MAC, Row, refused};
use crate::service::iptables;
use crate::sockets::{UdpSocket, udp, wait_until};
use crate::v4;

const MODES: [Mode; 2] = [Mode::Vxlan, Mode::Direct];
const SERVER: u16 = 8080;
const CLIENT: u16 = 45000;

#[test]
fn a_pod_that_gets_a_dead_ones_address_gets_its_packets() {
    for mode in MODES {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let clients = [node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap()];
        let sockets = clients.each_ref().map(|pod| udp(pod, ("0.0.0.0", CLIENT)));
        let address = json!({ "ips": ["10.244.1.77/24"] });
        let to: SocketAddr = ([10, 244, 1, 77], SERVER).into();
        for name in ["one", "two", "three"] {
            let pod = node.add_pod_with(name, &address).unwrap();
            let server = udp(&pod, ("0.0.0.0", SERVER));
            // Each datagram is sent once: the last pod's known flows ended before ADD answered.
            for _ in 0..3 {
                sockets.iter().for_each(|socket| exchange(socket, &server, to, &format!("{mode:?} {name}")));
            }
            drop(server);
            pod.delete().unwrap();
        }
    }
}

#[test]
fn node_that_leaves_returns_or_moves_takes_its_flows_along() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let [here, there] = [pair.lab.node(0), pair.lab.node(1)];
        let all = pair.lab.node_list().unwrap();
        let out = if mode == Mode::Vxlan { Path::TunnelOut } else { Path::DirectOut };
        pair.exchange("before");

        let mut without = all.clone();
        without["items"].as_array_mut().unwrap().remove(1);
        let entries = |node: &Node| node.map_dump(maps::NODES).unwrap().as_array().unwrap().len();
        let complete = entries(here);
        pair.lab.write_node_list(&without.to_string()).unwrap();
        // Its podCIDR and its address, of each family.
        let is_gone = || (entries(here) == complete - 4).then_some(());
        assert!(wait_until(is_gone).is_some(), "node2 never left");
        let before = Counted::quiet(&pair.lab);
        pair.client.send_to(b"into the dark", pair.to).unwrap();
        let grown = Counted::quiet(&pair.lab).since(&before);
        assert_eq!(grown.packets((0, out)), 0, "{mode:?}: {grown}");

        pair.lab.write_node_list(&all.to_string()).unwrap();
        assert!(
            wait_until(|| [here, there].iter().all(|node| entries(node) == complete).then_some(())).is_some(),
            "node2 never came back"
        );
        pair.drain();
        // The agent writes the maps before the routes, and direct routing needs the routes.
        pair.exchange_eventually(&format!("{mode:?}: it is back"));

        // The same node gets another address.
        let moved = Ipv4Addr::new(10, 200, 0, 12);
        there.add_address("eth0", moved.into(), 24).unwrap();
        let mut list = all.clone();
        list["items"][1]["status"]["addresses"][0]["address"] = json!(moved);
        pair.lab.write_node_list(&list.to_string()).unwrap();
        let knows = |node: &Node| node.map_dump(maps::NODES).unwrap().to_string().contains("10,200,0,12");
        assert!(
            wait_until(|| [here, there].iter().all(|node| knows(node)).then_some(())).is_some(),
            "{mode:?}"
        );
        // Each agent works for itself. When one is done, the other may not be, and direct routing
        // needs changes of the kernel's routes.
        pair.exchange_eventually(&format!("{mode:?}: it has moved"));
        if mode == Mode::Vxlan {
            let capture = Capture::start(pair.lab.underlay(), "node1").unwrap();
            (0..3).for_each(|_| pair.exchange("by its new address"));
            let frames = capture.finish().unwrap();
            let outer: Vec<_> = frames.iter().filter_map(|frame| Ip::of_frame(frame)).collect();
            let tunnelled: Vec<_> = outer.iter().filter(|ip| ip.tunnelled().is_some()).collect();
            assert!(!tunnelled.is_empty() && tunnelled.iter().all(|ip| ip.has_end(moved)), "{tunnelled:?}");
        }
    }
}

#[test]
fn what_pretends_to_be_of_a_known_flow_is_dropped() {
    for mode in MODES {
        let pair = Pair::with(mode, &["--link-addresses", "checked"]);
        let other = pair.lab.node(0).add_pod("other").unwrap();
        let stranger = pair.lab.add_host("stranger", "10.200.0.66".parse().unwrap()).unwrap();
        let [pod, far] = [&pair.pod, &pair.far];
        let there = Packet::new(v4(pod.address()), v4(far.address()), packets::udp(CLIENT, SERVER));
        let back = Packet::new(v4(far.address()), v4(pod.address()), packets::udp(SERVER, CLIENT));
        let node_mac = pair.lab.node(0).mac("eth0").unwrap();
        let stranger_mac = stranger.mac("eth0").unwrap();
        let mut rows: Vec<((&Ns, &str), Row<'_>)> = vec![
            (
                (&other, "eth0"),
                (
                    "another pod's flow from its link address",
                    there.clone().macs(other.host_mac(), pod.eth0_mac()).build(),
                    Drop::SourceNotOwned,
                ),
            ),
            (
                (&other, "eth0"),
                (
                    "another pod's flow",
                    there.clone().macs(other.host_mac(), other.eth0_mac()).build(),
                    Drop::SourceNotOwned,
                ),
            ),
            (
                (pod, "eth0"),
                (
                    "its own from another link address",
                    there.clone().macs(pod.host_mac(), OTHER_MAC).build(),
                    Drop::SourceMacNotOwned,
                ),
            ),
            (
                (&stranger, "eth0"),
                (
                    "a remote pod's flow, bare",
                    back.clone().macs(node_mac, stranger_mac).build(),
                    Drop::PodSourceNotFromNode,
                ),
            ),
        ];
        if mode == Mode::Vxlan {
            let outer = |source: IpAddr| {
                Vxlan::new(v4(source), v4(pair.lab.node(0).address())).with(|outer| {
                    (outer.source_mac, outer.destination_mac) = (stranger_mac, node_mac);
                })
            };
            let unknown = outer("10.200.0.66".parse().unwrap()).around(&inner(&back));
            let from_third = outer(pair.lab.node(2).address()).around(&inner(&back));
            let other_network =
                outer(pair.lab.node(1).address()).with(|outer| outer.vni += 1).around(&inner(&back));
            rows.extend([
                ((&stranger, "eth0"), ("from nobody", unknown, Drop::TunnelPeerUnknown)),
                ((&stranger, "eth0"), ("from another node", from_third, Drop::InnerSourceNotOwned)),
                ((&stranger, "eth0"), ("of another network", other_network, Drop::TunnelVniUnknown)),
            ]);
        }
        for (sender, row) in rows {
            pair.exchange(row.0);
            pair.exchange(row.0);
            refused(&pair.lab, 0, sender, &[row]);
        }
    }
}

#[test]
fn unusual_packets_of_a_known_flow_are_treated_as_such() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let near = pair.lab.node(0).add_pod("near").unwrap();
        traffic::ping(pair.lab.node(0), pair.lab.world_address(), 56).unwrap();
        let world = (pair.lab.world(), pair.lab.world_address());
        let pod = &pair.pod;
        for (ns, address) in [(&*near, near.address()), (&*pair.far, pair.far.address()), world] {
            let server = udp(ns, ("0.0.0.0", SERVER + 1));
            let to = SocketAddr::new(address, SERVER + 1);
            let known =
                || (0..3).for_each(|_| exchange(&pair.client, &server, to, &format!("{mode:?} {to}")));
            let packet = Packet::new(v4(pod.address()), v4(address), packets::udp(CLIENT, SERVER + 1))
                .macs(pod.host_mac(), pod.eth0_mac());
            known();
            let expired = packet.clone().with(|packet| packet.ttl = 1).build();
            let capture = Capture::start(pod, "eth0").unwrap();
            frames::send(pod, "eth0", &expired).unwrap();
            let told = |frame: &Vec<u8>| frame[..6] == pod.eth0_mac() && frame[23] == 1 && frame[34] == 11;
            std::thread::sleep(Duration::from_millis(50));
            let heard = capture.finish().unwrap();
            assert!(heard.iter().any(told), "{mode:?}: no time-exceeded error came about a packet to {to}");
            known();
            let tagged = packets::tagged(&packet.build());
            refused(&pair.lab, 0, (pod, "eth0"), &[("in a VLAN", tagged, Drop::VlanTagged)]);
            known();
            // Options without an operation: 4 bytes in front of the ports.
            let options = packet.with(|packet| packet.options = vec![1, 1, 1, 1]).build();
            frames::send(pod, "eth0", &options).unwrap();
            let mut buffer = [0; 100];
            let (length, _) = server.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"podwire!", "{mode:?}: with options to {to}");
            known();
            exchange(&pair.client, &server, to, &"in fragments ".repeat(400));
        }
    }
}

#[test]
fn a_direct_flow_becomes_a_services_at_once() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let service: SocketAddr = "10.96.0.13:53".parse().unwrap();
        let rule =
            format!("-t nat -A PREROUTING -d {} -p udp -j DNAT --to-destination {}", service.ip(), pair.to);
        iptables(pair.lab.node(0), &rule);
        for round in 0..3 {
            for to in [pair.to, pair.to, service, service] {
                exchange(&pair.client, &pair.server, to, &format!("{mode:?}, round {round}: {to}"));
            }
        }
    }
}

#[test]
fn host_port_answers_a_client_that_knows_the_pods_address() {
    for mode in MODES {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(1);
        let client = lab.node(0).add_pod("client").unwrap();
        let server = node.add_pod_with("server", &mappings(&[(9088, SERVER, "udp", None)])).unwrap();
        let socket = udp(&server, ("0.0.0.0", SERVER));
        let [direct, by_host_port] = [CLIENT, CLIENT + 1].map(|port| udp(&client, ("0.0.0.0", port)));
        let [pod, host_port] =
            [SocketAddr::new(server.address(), SERVER), SocketAddr::new(node.address(), 9088)];
        for round in 0..3 {
            exchange(&direct, &socket, pod, &format!("{mode:?}, round {round}, the pod"));
            exchange(&by_host_port, &socket, host_port, &format!("{mode:?}, round {round}, the hostPort"));
        }
        // For the pod, the direct flow and this hostPort flow are the same. From now on its answers
        // come from the node.
        exchange(
            &direct,
            &socket,
            host_port,
            &format!("{mode:?}: the hostPort from the port that knew the pod"),
        );
    }
}

#[test]
fn datagrams_are_not_lost_while_agents_are_killed_and_come_back() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let near = pair.lab.node(0).add_pod("near").unwrap();
        let servers = [
            (udp(&near, ("0.0.0.0", SERVER)), SocketAddr::new(near.address(), SERVER)),
            (udp(pair.lab.world(), "0.0.0.0:53"), SocketAddr::new(pair.lab.world_address(), 53)),
        ];
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let agents = scope.spawn(|| {
                for _ in 0..2 {
                    pair.lab.nodes().iter().for_each(|node| node.restart_agent().unwrap());
                    pair.lab.nodes().iter().for_each(|node| node.stop_agent().unwrap());
                    pair.lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut count = 0;
            while !done.load(Ordering::Relaxed) && !agents.is_finished() {
                count += 1;
                pair.exchange(&format!("{mode:?}, {count}"));
                for (server, to) in &servers {
                    exchange(&pair.client, server, *to, &format!("{mode:?}, {count}, {to}"));
                }
            }
            assert!(count > 0);
        });
        let drops: Vec<BTreeMap<_, _>> = pair.lab.nodes().iter().map(drops).collect();
        assert!(drops.iter().all(BTreeMap::is_empty), "{mode:?}: {drops:?}");
    }
}

/// A pod, and a pod of another node with which it exchanges datagrams.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    to: SocketAddr,
    pod: Pod,
    far: Pod,
    lab: Lab,
}

impl Pair {
    fn new(mode: Mode) -> Self {
        Self::with(mode, &[])
    }

    /// Returns the pair, in a lab with a third node that has no part in it.
    fn with(mode: Mode, arguments: &[&str]) -> Self {
        let lab = Lab::builder().mode(mode).nodes(3).agent_arguments(arguments).build().unwrap();
        let (pod, far) = (lab.node(0).add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
        let (client, server) = (udp(&pod, ("0.0.0.0", CLIENT)), udp(&far, ("0.0.0.0", SERVER)));
        let pair = Self { to: SocketAddr::new(far.address(), SERVER), client, server, pod, far, lab };
        for round in ["begun", "known"] {
            pair.exchange(round);
        }
        assert_ne!(pair.lab.node(0).map_dump(maps::FLOWS).unwrap(), json!([]), "nothing is known");
        pair
    }

    #[track_caller]
    fn exchange(&self, what: &str) {
        exchange(&self.client, &self.server, self.to, what);
    }

    /// Discards datagrams that arrived late.
    fn drain(&self) {
        for socket in [&self.client, &self.server] {
            socket.set_nonblocking(true).unwrap();
            let end = loop {
                if let Err(error) = socket.recv(&mut [0; 100]) {
                    break error.kind();
                }
            };
            assert_eq!(end, ErrorKind::WouldBlock);
            socket.set_nonblocking(false).unwrap();
        }
    }

    /// Asks until an answer comes.
    fn exchange_eventually(&self, what: &str) {
        let timeout = self.client.read_timeout().unwrap();
        for socket in [&self.client, &self.server] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
        let answered = wait_until(|| {
            self.client.send_to(b"there?", self.to).unwrap();
            let (_, peer) = self.server.recv_from(&mut [0; 100]).ok()?;
            self.server.send_to(b"here", peer).unwrap();
            self.client.recv(&mut [0; 100]).ok()
        });
        for socket in [&self.client, &self.server] {
            socket.set_read_timeout(timeout).unwrap();
        }
        assert!(answered.is_some(), "{what}");
        self.drain();
    }
}

/// Exchanges a question and its answer, each sent once.
#[track_caller]
fn exchange(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, what: &str) {
    client.send_to(what.as_bytes(), to).unwrap();
    let mut buffer = vec![0; 65536];
    let received = server.recv_from(&mut buffer);
    let (length, peer) = received.unwrap_or_else(|error| panic!("{what}: the question: {error}"));
    assert_eq!(&buffer[..length], what.as_bytes());
    server.send_to(what.as_bytes(), peer).unwrap();
    let received = client.recv_from(&mut buffer);
    let (length, from) = received.unwrap_or_else(|error| panic!("{what}: the answer: {error}"));
    assert_eq!((&buffer[..length], from), (what.as_bytes(), to));
}
