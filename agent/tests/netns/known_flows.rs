//! A known flow ends when anything that it depends on changes. The very next packet no longer
//! follows it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use podwire_common::flow::protocol;
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, maps};
use podwire_common::reason::{Drop, Path};
use serde_json::{Value, json};
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Lab, Mode, Node, Ns, Pod, traffic};

use crate::check::{Counted, drops};
use crate::commands::rows;
use crate::headers::Ip;
use crate::host_ports::mappings;
use crate::icmp_errors::frame;
use crate::packets::{self, Packet, Vxlan};
use crate::packets6::{Extension, Packet6};
use crate::refused::{OTHER_MAC, Row, refused};
use crate::service::service;
use crate::services::{self, ENTRIES, POD_PORT, SERVICE_PORT};
use crate::sockets::{UdpSocket, udp, wait_until};
use crate::{FAMILIES, Place as _, dumped, ip_tables, v4, v6, world_end};

const MODES: [Mode; 2] = [Mode::Vxlan, Mode::Direct];
const SERVER: u16 = 8080;
const CLIENT: u16 = 45000;

#[test]
fn a_pod_that_gets_a_dead_ones_address_gets_its_packets() {
    const ASKED: [&str; 2] = ["10.244.1.77/24", "fd00:10:244:1::77/64"];
    for mode in MODES {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let clients = [node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap()];
        let sockets = clients.each_ref().map(|pod| both(pod, CLIENT));
        for name in ["one", "two", "three"] {
            let pod = node.add_pod_with(name, &json!({ "ips": ASKED })).unwrap();
            assert!(
                ASKED.iter().zip(pod.addresses()).all(|(asked, own)| asked.starts_with(&own.to_string()))
            );
            let servers = both(&pod, SERVER);
            // Each datagram is sent once: the last pod's known flows ended before ADD answered.
            for _ in 0..3 {
                for of_client in &sockets {
                    for ((socket, server), own) in of_client.iter().zip(&servers).zip(pod.addresses()) {
                        let to = SocketAddr::new(*own, SERVER);
                        exchange(socket, server, to, &format!("{mode:?} {name} {own}"));
                    }
                }
            }
            drop(servers);
            pod.delete().unwrap();
        }
    }
}

#[test]
fn node_that_leaves_returns_or_moves_takes_its_flows_along() {
    /// The node's later addresses.
    const MOVED: [(&str, u8); 2] = [("10.200.0.12", 24), ("fd00:10:200::12", 64)];
    for mode in MODES {
        let pair = Pair::new(mode);
        let [here, there] = [pair.lab.node(0), pair.lab.node(1)];
        let all = pair.lab.node_list().unwrap();
        pair.exchange("before");

        let mut without = all.clone();
        without["items"].as_array_mut().unwrap().remove(1);
        let entries = |node: &Node| node.map_dump(maps::NODES).unwrap().as_array().unwrap().len();
        let complete = entries(here);
        pair.lab.write_node_list(&without.to_string()).unwrap();
        // Its podCIDR and its address, of each family.
        let is_gone = || (entries(here) == complete - 4).then_some(());
        assert!(wait_until(is_gone).is_some(), "node2 never left");
        FAMILIES.into_iter().for_each(|family| pair.assert_is_out_of_reach(family));

        pair.lab.write_node_list(&all.to_string()).unwrap();
        assert!(
            wait_until(|| [here, there].iter().all(|node| entries(node) == complete).then_some(())).is_some(),
            "node2 never came back"
        );
        // The agent writes the maps before the routes, and direct routing needs the routes.
        FAMILIES.into_iter().for_each(|family| pair.exchange_eventually(family, "it is back"));

        // The same node gets other addresses, one after the other.
        let mut list = all.clone();
        for (family, (moved, length)) in MOVED.into_iter().enumerate() {
            let moved = moved.parse().unwrap();
            there.add_address("eth0", moved, length).unwrap();
            list["items"][1]["status"]["addresses"][family]["address"] = json!(moved);
            pair.lab.write_node_list(&list.to_string()).unwrap();
            let is_known = || [here, there].iter().all(|node| knows(node, moved)).then_some(());
            assert!(pair.wait_beside(1 - family, is_known).is_some(), "{mode:?}: {moved}");
            // Each agent works for itself. When one is done, the other may not be, and direct routing
            // needs changes of the kernel's routes.
            pair.exchange_eventually(family, "it has moved");
            pair.exchange_eventually(1 - family, "the other family, too");
        }
        if mode == Mode::Vxlan {
            let capture = Capture::start(pair.lab.underlay(), "node1").unwrap();
            (0..3).for_each(|_| pair.exchange("by its new address"));
            let frames = capture.finish().unwrap();
            let outer: Vec<_> = frames.iter().filter_map(|frame| Ip::of_frame(frame)).collect();
            let tunnelled: Vec<_> = outer.iter().filter(|ip| ip.tunnelled().is_some()).collect();
            let moved = MOVED[0].0.parse().unwrap();
            assert!(!tunnelled.is_empty() && tunnelled.iter().all(|ip| ip.has_end(moved)), "{tunnelled:?}");
        }
    }
}

/// By direct routing, the next hop to a node's pods is its InternalIP of their family. A tunnel
/// needs one InternalIP for both.
#[test]
fn an_internal_ip_that_goes_costs_the_other_family_nothing() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let whole = pair.lab.node_list().unwrap();
        let [here, there] = [pair.lab.node(0), pair.lab.node(1)];
        // The tunnel has the InternalIPs of IPv4.
        let gone: &[usize] = if mode == Mode::Vxlan { &[1] } else { &[0, 1] };
        for family in gone.iter().copied() {
            let internal = there.addresses()[family];
            let mut without = whole.clone();
            let addresses = without["items"][1]["status"]["addresses"].as_array_mut().unwrap();
            addresses.retain(|entry: &Value| entry["address"] != json!(internal));
            pair.lab.write_node_list(&without.to_string()).unwrap();
            let is_gone = || (!knows(here, internal)).then_some(());
            assert!(pair.wait_beside(1 - family, is_gone).is_some(), "{mode:?}: {internal} never went");
            match mode {
                Mode::Vxlan => pair.exchange_in(family, "by the tunnel"),
                // Only the route to this InternalIP led there.
                Mode::Direct => {
                    let is_lost = || (!pair.arrives(family)).then_some(());
                    assert!(pair.wait_beside(1 - family, is_lost).is_some(), "{internal} still leads there");
                }
            }
            pair.lab.write_node_list(&whole.to_string()).unwrap();
            let is_back = || knows(here, internal).then_some(());
            assert!(pair.wait_beside(1 - family, is_back).is_some(), "{mode:?}: {internal} never came back");
            pair.exchange_eventually(family, "the InternalIP is back");
        }
    }
}

#[test]
fn what_pretends_to_be_of_a_known_flow_is_dropped() {
    for mode in MODES {
        let pair = Pair::with(mode, &["--link-addresses", "checked"]);
        let other = pair.lab.node(0).add_pod("other").unwrap();
        let stranger = pair.lab.add_host("stranger", "10.200.0.66".parse().unwrap()).unwrap();
        for family in FAMILIES {
            check_pretenders(&pair, family, &other, &stranger);
        }
    }
}

fn check_pretenders(pair: &Pair, family: usize, other: &Pod, stranger: &Ns) {
    let pod = &pair.pod;
    let ends = (pod.end(family).1, pair.far.end(family).1);
    let there = |to, from| frame([to, from], ends, &packets::udp(CLIENT, SERVER), None);
    let back = |to, from| frame([to, from], (ends.1, ends.0), &packets::udp(SERVER, CLIENT), None);
    let node_mac = pair.lab.node(0).mac("eth0").unwrap();
    let stranger_mac = stranger.mac("eth0").unwrap();
    let mut rows: Vec<((&Ns, &str), Row<'_>)> = vec![
        (
            (other, "eth0"),
            (
                "another pod's flow from its link address",
                there(other.host_mac(), pod.eth0_mac()),
                Drop::SourceNotOwned,
            ),
        ),
        (
            (other, "eth0"),
            ("another pod's flow", there(other.host_mac(), other.eth0_mac()), Drop::SourceNotOwned),
        ),
        (
            (pod, "eth0"),
            ("its own from another link address", there(pod.host_mac(), OTHER_MAC), Drop::SourceMacNotOwned),
        ),
        (
            (stranger, "eth0"),
            ("a remote pod's flow, bare", back(node_mac, stranger_mac), Drop::PodSourceNotFromNode),
        ),
    ];
    if pair.lab.mode() == Mode::Vxlan {
        let outer = |source: IpAddr| {
            Vxlan::new(v4(source), v4(pair.lab.node(0).address())).with(|outer| {
                (outer.source_mac, outer.destination_mac) = (stranger_mac, node_mac);
            })
        };
        let inner = back(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
        let unknown = outer("10.200.0.66".parse().unwrap()).around(&inner);
        let from_third = outer(pair.lab.node(2).address()).around(&inner);
        let other_network = outer(pair.lab.node(1).address()).with(|outer| outer.vni += 1).around(&inner);
        rows.extend([
            ((stranger, "eth0"), ("from nobody", unknown, Drop::TunnelPeerUnknown)),
            ((stranger, "eth0"), ("from another node", from_third, Drop::InnerSourceNotOwned)),
            ((stranger, "eth0"), ("of another network", other_network, Drop::TunnelVniUnknown)),
        ]);
    }
    for (sender, row) in rows {
        pair.exchange(row.0);
        pair.exchange(row.0);
        refused(&pair.lab, 0, sender, &[row]);
    }
}

#[test]
fn unusual_packets_of_a_known_flow_are_treated_as_such() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let near = pair.lab.node(0).add_pod("near").unwrap();
        for family in FAMILIES {
            let world = world_end(&pair.lab, family);
            traffic::ping(pair.lab.node(0), world.1, 56).unwrap();
            // With IPv6, the world learns from this which fragments fit the pod.
            traffic::ping(&pair.pod, world.1, 9000).unwrap();
            for end in [near.end(family), pair.far.end(family), world] {
                check_unusual(&pair, family, end);
            }
        }
    }
}

fn check_unusual(pair: &Pair, family: usize, (ns, address): (&Ns, IpAddr)) {
    /// The offsets of the protocol and of the ICMP message in a frame, and ICMP's number and its type
    /// for "time exceeded".
    const TIME_EXCEEDED: [(usize, usize, u8, u8); 2] =
        [(23, 34, protocol::ICMP, 11), (20, 54, protocol::ICMPV6, 3)];
    let (pod, client, mode) = (&pair.pod, &pair.clients[family], pair.lab.mode());
    let to = SocketAddr::new(address, SERVER + 1);
    let server = udp(ns, to);
    let known = || {
        for _ in 0..3 {
            exchange(client, &server, to, &format!("{mode:?} {to}"));
        }
    };
    let sends = |how| unusual(pod, address, how);
    known();
    let capture = Capture::start(pod, "eth0").unwrap();
    frames::send(pod, "eth0", &sends(Unusual::Expired)).unwrap();
    let (protocol_at, message_at, icmp, kind) = TIME_EXCEEDED[family];
    let told = |frame: &Vec<u8>| {
        frame[..6] == pod.eth0_mac() && frame[protocol_at] == icmp && frame[message_at] == kind
    };
    std::thread::sleep(Duration::from_millis(50));
    let heard = capture.finish().unwrap();
    assert!(heard.iter().any(told), "{mode:?}: no time-exceeded error came about a packet to {to}");
    known();
    refused(&pair.lab, 0, (pod, "eth0"), &[("in a VLAN", sends(Unusual::Tagged), Drop::VlanTagged)]);
    known();
    frames::send(pod, "eth0", &sends(Unusual::WithOptions)).unwrap();
    let mut buffer = [0; 100];
    let (length, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"podwire!", "{mode:?}: with options to {to}");
    known();
    exchange(client, &server, to, &"in fragments ".repeat(400));
}

/// A way in which a packet differs from the others of its flow.
enum Unusual {
    Expired,
    Tagged,
    /// Options without an operation, in front of the ports: those of IPv4, or an extension header.
    WithOptions,
}

/// Returns a frame of the pod's flow of datagrams to this address.
fn unusual(pod: &Pod, to: IpAddr, how: Unusual) -> Vec<u8> {
    let (datagram, macs) = (packets::udp(CLIENT, SERVER + 1), (pod.host_mac(), pod.eth0_mac()));
    match to {
        IpAddr::V4(to) => {
            let packet = Packet::new(v4(pod.end(0).1), to, datagram).macs(macs.0, macs.1);
            match how {
                Unusual::Expired => packet.with(|packet| packet.ttl = 1).build(),
                Unusual::Tagged => packets::tagged(&packet.build()),
                Unusual::WithOptions => packet.with(|packet| packet.options = vec![1; 4]).build(),
            }
        }
        IpAddr::V6(to) => {
            let packet = Packet6::new(v6(pod.end(1).1), to, datagram).macs(macs.0, macs.1);
            let options = Extension::of(protocol::DESTINATION_OPTIONS);
            match how {
                Unusual::Expired => packet.with(|packet| packet.hop_limit = 1).build(),
                Unusual::Tagged => packets::tagged(&packet.build()),
                Unusual::WithOptions => packet.with(|packet| packet.extensions = vec![options]).build(),
            }
        }
    }
}

#[test]
fn a_direct_flow_becomes_a_services_at_once() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let services = service(13).map(|service| SocketAddr::new(service, 53));
        for family in FAMILIES {
            let (service, to) = (services[family].ip(), pair.to[family]);
            let rule = format!("-A PREROUTING -d {service} -p udp -j DNAT --to-destination {to}");
            ip_tables(pair.lab.node(0), family, &format!("-t nat {rule}"));
        }
        for round in 0..3 {
            for family in FAMILIES {
                let (direct, service) = (pair.to[family], services[family]);
                for to in [direct, direct, service, service] {
                    let what = format!("{mode:?}, round {round}: {to}");
                    exchange(&pair.clients[family], &pair.servers[family], to, &what);
                }
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
        let sockets = both(&server, SERVER);
        let (direct, by_host_port) = (both(&client, CLIENT), both(&client, CLIENT + 1));
        for family in FAMILIES {
            let (socket, direct) = (&sockets[family], &direct[family]);
            let pod = SocketAddr::new(server.end(family).1, SERVER);
            let host_port = SocketAddr::new(node.end(family).1, 9088);
            for round in 0..3 {
                let what = format!("{mode:?}, round {round}");
                exchange(direct, socket, pod, &format!("{what}, {pod}"));
                exchange(&by_host_port[family], socket, host_port, &format!("{what}, {host_port}"));
            }
            // For the pod, the direct flow and this hostPort flow are the same. From now on its
            // answers come from the node.
            exchange(
                direct,
                socket,
                host_port,
                &format!("{mode:?}: {host_port} from the port that knew the pod"),
            );
        }
    }
}

#[test]
fn datagrams_are_not_lost_while_agents_are_killed_and_come_back() {
    for mode in MODES {
        let pair = Pair::new(mode);
        let near = pair.lab.node(0).add_pod("near").unwrap();
        let servers = FAMILIES.map(|family| {
            [(near.end(family), SERVER), (world_end(&pair.lab, family), 53)]
                .map(|((ns, address), port)| (udp(ns, (address, port)), SocketAddr::new(address, port)))
        });
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
                for (client, servers) in pair.clients.iter().zip(&servers) {
                    for (server, to) in servers {
                        exchange(client, server, *to, &format!("{mode:?}, {count}, {to}"));
                    }
                }
            }
            assert!(count > 0);
        });
        let drops: Vec<BTreeMap<_, _>> = pair.lab.nodes().iter().map(drops).collect();
        assert!(drops.iter().all(BTreeMap::is_empty), "{mode:?}: {drops:?}");
    }
}

/// A pod, and a pod of another node with which it exchanges datagrams of both families.
struct Pair {
    clients: [UdpSocket; 2],
    servers: [UdpSocket; 2],
    to: [SocketAddr; 2],
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
        let (clients, servers) = (both(&pod, CLIENT), both(&far, SERVER));
        let to = FAMILIES.map(|family| SocketAddr::new(far.end(family).1, SERVER));
        let pair = Self { clients, servers, to, pod, far, lab };
        for round in ["begun", "known"] {
            pair.exchange(round);
        }
        for map in [maps::FLOWS, maps::FLOWS6] {
            assert_ne!(pair.lab.node(0).map_dump(map).unwrap(), json!([]), "nothing is known in {map}");
        }
        pair
    }

    /// Exchanges datagrams of both families.
    #[track_caller]
    fn exchange(&self, what: &str) {
        for family in FAMILIES {
            self.exchange_in(family, what);
        }
    }

    #[track_caller]
    fn exchange_in(&self, family: usize, what: &str) {
        let to = self.to[family];
        let what = format!("{:?}, {to}: {what}", self.lab.mode());
        exchange(&self.clients[family], &self.servers[family], to, &what);
    }

    /// Waits until there is an answer. By direct routing, the datagrams of a family that the change
    /// does not concern arrive meanwhile, each sent once. A tunnel serves both families.
    #[track_caller]
    fn wait_beside<T>(&self, family: usize, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        wait_until(|| {
            if self.lab.mode() == Mode::Direct {
                self.exchange_in(family, "the other family");
            }
            ask()
        })
    }

    /// Asserts that the pod's datagram does not leave the first node.
    #[track_caller]
    fn assert_is_out_of_reach(&self, family: usize) {
        let out = if self.lab.mode() == Mode::Vxlan { Path::TunnelOut } else { Path::DirectOut };
        let before = Counted::quiet(&self.lab);
        self.clients[family].send_to(b"into the dark", self.to[family]).unwrap();
        let grown = Counted::quiet(&self.lab).since(&before);
        assert_eq!(grown.packets((0, out)), 0, "{:?}, {}: {grown}", self.lab.mode(), self.to[family]);
    }

    /// Returns whether by direct routing a datagram arrives at the other node.
    fn arrives(&self, family: usize) -> bool {
        let before = Counted::quiet(&self.lab);
        self.clients[family].send_to(b"into the dark", self.to[family]).unwrap();
        Counted::quiet(&self.lab).since(&before).packets((1, Path::DirectIn)) > 0
    }

    /// Discards a family's datagrams that arrived late.
    fn drain(&self, family: usize) {
        for socket in [&self.clients[family], &self.servers[family]] {
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
    #[track_caller]
    fn exchange_eventually(&self, family: usize, what: &str) {
        let (client, server) = (&self.clients[family], &self.servers[family]);
        self.drain(family);
        let timeout = client.read_timeout().unwrap();
        for socket in [client, server] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
        let answered = wait_until(|| {
            client.send_to(b"there?", self.to[family]).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 100]).ok()?;
            server.send_to(b"here", peer).unwrap();
            client.recv(&mut [0; 100]).ok()
        });
        for socket in [client, server] {
            socket.set_read_timeout(timeout).unwrap();
        }
        assert!(answered.is_some(), "{:?}, {}: {what}", self.lab.mode(), self.to[family]);
        self.drain(family);
    }
}

/// Returns a socket of each family, bound to the pod's own address.
fn both(pod: &Pod, port: u16) -> [UdpSocket; 2] {
    FAMILIES.map(|family| udp(pod, (pod.end(family).1, port)))
}

/// Returns whether the agent has an address among those of nodes.
fn knows(node: &Node, address: IpAddr) -> bool {
    node.map_dump(maps::NODES).unwrap().to_string().contains(&dumped(address))
}

/// The answers of a service's backend on another node are known, too.
#[test]
fn answers_of_services_end_with_what_they_depend_on() {
    const ASKED: [&str; 2] = ["10.244.1.88/24", "fd00:10:244:1::88/64"];
    const LAST: u8 = 0x52;
    for (mode, way) in [(Mode::Vxlan, "tunnel-in"), (Mode::Direct, "direct-in")] {
        let lab = services::lab(mode);
        let here = lab.node(0);
        let backends = ["first", "second"].map(|name| lab.node(1).add_pod(name).unwrap());
        let servers = backends.each_ref().map(|pod| udp(pod, (pod.addresses()[0], POD_PORT)));
        let at = SocketAddr::new(service(LAST)[0], SERVICE_PORT);
        let knows = |backend: &Pod| {
            let is_answer = |row: &Value| {
                let ends = [&row["source"]["address"], &row["translated_source"]["address"]];
                row["kind"] == "known"
                    && row["way"] == way
                    && ends == [&json!(backend.addresses()[0]), &json!(at.ip())]
            };
            rows(here, &["flows", "--protocol", "udp"]).iter().any(is_answer)
        };
        let mut late: Vec<(usize, SocketAddr)> = Vec::new();
        for name in ["one", "two"] {
            let client = here.add_pod_with(name, &json!({ "ips": ASKED })).unwrap();
            let asks = udp(&client, (client.addresses()[0], CLIENT));
            for (number, (backend, server)) in backends.iter().zip(&servers).enumerate() {
                services::put(&lab, "web", LAST, &[backend], ENTRIES);
                let what = format!("{mode:?}, {name}, {}", backend.addresses()[0]);
                let peers: Vec<_> = (0..4).map(|_| exchange(&asks, server, at, &what)).collect();
                assert!(knows(backend), "{what}");
                // Answers that come too late are no service's: the next one is that to the question.
                for (other, peer) in late.iter().filter(|(other, _)| *other != number) {
                    servers[*other].send_to(b"late", peer).unwrap();
                }
                exchange(&asks, server, at, &what);
                late.push((number, peers[0]));
            }
            client.delete().unwrap();
        }
    }
}

/// Exchanges a question and its answer, each sent once. Returns the client as the server sees it.
#[track_caller]
fn exchange(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, what: &str) -> SocketAddr {
    client.send_to(what.as_bytes(), to).unwrap();
    let mut buffer = vec![0; 65536];
    let received = server.recv_from(&mut buffer);
    let (length, peer) = received.unwrap_or_else(|error| panic!("{what}: the question: {error}"));
    assert_eq!(&buffer[..length], what.as_bytes());
    server.send_to(what.as_bytes(), peer).unwrap();
    let received = client.recv_from(&mut buffer);
    let (length, from) = received.unwrap_or_else(|error| panic!("{what}: the answer: {error}"));
    assert_eq!((&buffer[..length], from), (what.as_bytes(), to));
    peer
}
