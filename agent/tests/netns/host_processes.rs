//! The node's own processes reach a pod's hostPort by any address of the node. The programs for
//! sockets redirect these processes only.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::Command;

use podwire::cgroup2;
use podwire_common::names::{maps, programs};
use serde_json::Value;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Families, Lab, Node, Ns, Pod};

use crate::host_ports;
use crate::sockets::{PATIENCE, UdpSocket, connect_from, listen, udp, unspecified};
use crate::sweep::{comes, conditions};

const MEBIBYTE: u64 = 1 << 20;
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Of each family, in the order of the lab.
pub const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(LOOPBACK), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const ALIAS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The pods' own port and their hostPort.
const PORT: u16 = 8080;
const HOST_PORT: u16 = 18080;

#[test]
fn connection_to_any_own_address_reaches_the_pod_and_names_it() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    for to in own_addresses(node).concat().into_iter().map(|address| SocketAddr::new(address, HOST_PORT)) {
        let exchange = traffic::tcp_exchange_on(node, &pod, Route::translated(to, PORT), MEBIBYTE).unwrap();
        assert_eq!(exchange.peer_seen_by_client, to);
        // The pod sees the node's own address, and can answer it like any other client.
        let seen = exchange.peer_seen_by_server.ip();
        assert!(node.addresses().contains(&seen) && seen.is_ipv4() == to.is_ipv4(), "{to}: {seen}");
    }
    for (loopback, address) in LOOPBACKS.into_iter().zip(pod.addresses()) {
        let any = unspecified(loopback);
        // Linux treats 0.0.0.0 as 127.0.0.1, and :: as ::1.
        let _listener = listen(&pod, (any, PORT));
        let client = connect(node, (any, HOST_PORT)).unwrap();
        assert_eq!(client.peer_addr().unwrap(), (loopback, HOST_PORT).into());
        // The programs change nothing for a port without a pod behind it, or for the pod's own
        // address.
        let refused = connect(node, (loopback, HOST_PORT + 1)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let direct = connect(node, (*address, PORT)).unwrap();
        assert_eq!(direct.peer_addr().unwrap(), (*address, PORT).into());
    }
}

#[test]
fn a_connected_udp_socket_hears_the_address_that_it_asked_for() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    for (addresses, pods) in own_addresses(node).into_iter().zip(pod.addresses()) {
        let any = unspecified(*pods);
        let server = udp(&pod, (any, PORT));
        for address in addresses {
            let to = SocketAddr::new(address, HOST_PORT);
            let client = udp(node, (any, 0));
            client.connect(to).unwrap();
            assert_eq!(client.peer_addr().unwrap(), to);
            client.send(b"question").unwrap();
            assert_eq!(answered(&client, &server), to);
            // On a connected socket, a process may name an address for one datagram too. The program
            // then redirects that datagram.
            client.send_to(b"question", to).unwrap();
            assert_eq!(answered(&client, &server), to);
        }
    }
}

#[test]
fn a_datagram_is_answered_by_the_address_that_it_was_sent_to() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    let other = pod_with_host_ports(node, "other", &[HostPort { port: HOST_PORT + 1, ..HostPort::udp() }]);
    for (family, loopback) in LOOPBACKS.into_iter().enumerate() {
        let (any, address) = (unspecified(loopback), node.addresses()[family]);
        let [of_pod, of_other] = [&pod, &other].map(|pod| pod.addresses()[family]);
        let servers = [udp(&pod, (any, PORT)), udp(&other, (any, PORT))];
        let client = udp(node, (any, 0));
        // One socket asks them by turns. Each answer comes from the address that the socket asked, a
        // pod's own address included.
        for _ in 0..2 {
            for (to, server) in [
                (SocketAddr::new(loopback, HOST_PORT), 0),
                (SocketAddr::new(address, HOST_PORT + 1), 1),
                (SocketAddr::new(of_pod, PORT), 0),
                (SocketAddr::new(address, HOST_PORT), 0),
                (SocketAddr::new(of_other, PORT), 1),
            ] {
                client.send_to(b"question", to).unwrap();
                assert_eq!(answered(&client, &servers[server]), to);
            }
        }
        // Two questions are open at the same time.
        let first = SocketAddr::new(loopback, HOST_PORT);
        let second = SocketAddr::new(loopback, HOST_PORT + 1);
        client.send_to(b"first", first).unwrap();
        client.send_to(b"second", second).unwrap();
        assert_eq!(answered(&client, &servers[1]), second);
        assert_eq!(answered(&client, &servers[0]), first);
    }
}

#[test]
fn a_socket_of_both_families_is_served_as_well() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    let mapped = |address: Ipv4Addr, port| SocketAddr::new(address.to_ipv6_mapped().into(), port);
    let _listener = listen(&pod, (Ipv4Addr::UNSPECIFIED, PORT));
    let server = udp(&pod, (Ipv4Addr::UNSPECIFIED, PORT));
    for address in [LOOPBACK, crate::v4(node.address())] {
        let to = mapped(address, HOST_PORT);
        assert_eq!(connect(node, to).unwrap().peer_addr().unwrap(), to);
        let client = udp(node, (Ipv6Addr::UNSPECIFIED, 0));
        client.send_to(b"question", to).unwrap();
        assert_eq!(answered(&client, &server), to);
        let direct = mapped(crate::v4(pod.address()), PORT);
        client.send_to(b"question", direct).unwrap();
        assert_eq!(answered(&client, &server), direct);
        client.connect(to).unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        client.send(b"question").unwrap();
        assert_eq!(answered(&client, &server), to);
    }
}

#[test]
fn socket_bound_to_the_nodes_address_reaches_it_by_loopback() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    for (loopback, address) in LOOPBACKS.into_iter().zip(node.addresses()) {
        let any = unspecified(loopback);
        let listener = listen(&pod, (any, PORT));
        let client = connect_from(node, (address, 0), (loopback, HOST_PORT)).unwrap();
        assert_eq!(client.peer_addr().unwrap(), (loopback, HOST_PORT).into());
        assert_eq!(listener.accept().unwrap().1.ip(), address);
        let server = udp(&pod, (any, PORT));
        let client = udp(node, (address, 0));
        client.send_to(b"question", (loopback, HOST_PORT)).unwrap();
        assert_eq!(answered(&client, &server), (loopback, HOST_PORT).into());
        // A limit: a socket that is bound to a loopback address stays on this host, and reaches only
        // listeners there.
        let refused = connect_from(node, (loopback, 0), (loopback, HOST_PORT)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let _own = listen(node, (loopback, HOST_PORT));
        connect_from(node, (loopback, 0), (loopback, HOST_PORT)).unwrap();
        let (own, client) = (udp(node, (loopback, HOST_PORT)), udp(node, (loopback, 0)));
        client.send_to(b"question", (loopback, HOST_PORT)).unwrap();
        assert_eq!(answered(&client, &own), (loopback, HOST_PORT).into());
    }
}

#[test]
fn a_socket_of_the_other_family_stays_what_it_is() {
    let lab = Lab::builder().nodes(1).families(Families::Dual).build().unwrap();
    let node = lab.node(0);
    let only_in = |address: IpAddr, port| HostPort { address: Some(address), port, ..HostPort::tcp() };
    let [v4, v6] = LOOPBACKS.map(unspecified);
    let pod = pod_with_host_ports(node, "pod", &[only_in(v4, HOST_PORT), only_in(v6, HOST_PORT + 1)]);
    // This socket takes IPv4 as well.
    let _listener = listen(&pod, (v6, PORT));
    for (number, loopback) in LOOPBACKS.into_iter().enumerate() {
        connect(node, (loopback, HOST_PORT + number as u16)).unwrap();
        let refused = connect(node, (loopback, HOST_PORT + 1 - number as u16)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    // To a socket that is bound to an IPv4 address, `::` is 127.0.0.1.
    let mapped = crate::v4(node.address()).to_ipv6_mapped();
    let client = connect_from(node, (mapped, 0), (v6, HOST_PORT)).unwrap();
    assert_eq!(client.peer_addr().unwrap(), (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), HOST_PORT).into());
}

#[test]
fn a_host_ip_is_the_only_address_that_leads_to_its_pod() {
    let lab = Lab::builder().nodes(1).families(Families::Dual).build().unwrap();
    let node = lab.node(0);
    let at = |address, port| HostPort { address: Some(address), port, ..HostPort::tcp() };
    let inner = LOOPBACKS.map(|loopback| at(loopback, HOST_PORT));
    let outer = node.addresses().into_iter().map(|address| at(address, HOST_PORT + 1));
    let pod = pod_with_host_ports(node, "pod", &inner.into_iter().chain(outer).collect::<Vec<_>>());
    let refused = |address: IpAddr, port| {
        assert_eq!(connect(node, (address, port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    };
    for (loopback, address) in LOOPBACKS.into_iter().zip(node.addresses()) {
        let any = unspecified(loopback);
        let _listener = listen(&pod, (any, PORT));
        connect(node, (loopback, HOST_PORT)).unwrap();
        refused(address, HOST_PORT);
        connect(node, (address, HOST_PORT + 1)).unwrap();
        refused(loopback, HOST_PORT + 1);
        // The same port of the other protocol is another port.
        let server = udp(&pod, (any, PORT));
        let client = udp(node, (any, 0));
        client.connect((loopback, HOST_PORT)).unwrap();
        client.send(b"question").unwrap();
        assert_eq!(client.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    refused(ALIAS.into(), HOST_PORT);
}

#[test]
fn foreign_host_ip_takes_nothing_from_the_nodes_processes() {
    let lab = Lab::builder().families(Families::Dual).build().unwrap();
    let node = lab.node(0);
    let of_others = [(lab.world(), lab.world_addresses()), (&**lab.node(1), lab.node(1).addresses())];
    let all = of_others.iter().flat_map(|(_, addresses)| addresses);
    let ports: Vec<_> =
        all.map(|address| HostPort { address: Some(*address), port: PORT, ..HostPort::tcp() }).collect();
    let pod = pod_with_host_ports(node, "greedy", &ports);
    for family in [0, 1] {
        let any = unspecified(LOOPBACKS[family]);
        let _thief = listen(&pod, (any, PORT));
        for (ns, addresses) in &of_others {
            let owner = listen(ns, (any, PORT));
            owner.set_nonblocking(true).unwrap();
            let client = connect(node, (addresses[family], PORT)).unwrap();
            let accepted = owner.accept().map(|(_, peer)| peer);
            assert_eq!(accepted.unwrap(), client.local_addr().unwrap(), "{addresses:?}");
        }
    }
}

#[test]
fn processes_of_pods_and_of_other_nodes_keep_their_loopback() {
    let lab = Lab::builder().families(Families::Dual).build().unwrap();
    let (node, other) = (lab.node(0), lab.node(1));
    let pod = pod_with_host_ports(node, "pod", &[HostPort::tcp(), HostPort::udp()]);
    let neighbour = node.add_pod("neighbour").unwrap();
    for loopback in LOOPBACKS {
        for ns in [&*neighbour, &*pod, &**other] {
            let outcome = connect(ns, (loopback, HOST_PORT));
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{}", ns.name());
            let own = listen(ns, (loopback, HOST_PORT));
            let client = connect(ns, (loopback, HOST_PORT)).unwrap();
            assert_eq!(own.accept().unwrap().1, client.local_addr().unwrap());
            let (server, client) = (udp(ns, (loopback, HOST_PORT)), udp(ns, (loopback, 0)));
            client.send_to(b"question", (loopback, HOST_PORT)).unwrap();
            assert_eq!(answered(&client, &server), (loopback, HOST_PORT).into());
        }
    }
    // The same port leads to a different pod on each node.
    let far = pod_with_host_ports(other, "far", &[HostPort::tcp()]);
    for loopback in LOOPBACKS {
        let [listener, far_listener] = [&pod, &far].map(|pod| listen(pod, (unspecified(loopback), PORT)));
        let client = connect(other, (loopback, HOST_PORT)).unwrap();
        assert_eq!(far_listener.accept().unwrap().1, client.local_addr().unwrap());
        let client = connect(node, (loopback, HOST_PORT)).unwrap();
        assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
    }
}

#[test]
fn returning_agent_replaces_its_one_program_of_each_kind() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    let to = SocketAddr::new(LOOPBACK.into(), HOST_PORT);
    let first = attached(node);
    assert_eq!(kinds(&first), every_kind(false));
    let stream = traffic::tcp_stream_on(node, &pod, Route::translated(to, PORT)).unwrap();
    let server = udp(&pod, (Ipv4Addr::UNSPECIFIED, PORT));
    let client = udp(node, (Ipv4Addr::UNSPECIFIED, 0));
    let ask = || {
        client.send_to(b"question", to).unwrap();
        assert_eq!(answered(&client, &server), to);
    };
    ask();
    node.kill_agent().unwrap();
    assert_eq!(attached(node), first);
    stream.wait_for(MEBIBYTE).unwrap();
    ask();
    // The socket asks before the new agent starts. The answer comes afterwards.
    client.send_to(b"question", to).unwrap();
    node.start_agent().unwrap();
    assert_eq!(answered(&client, &server), to);
    let second = attached(node);
    assert_eq!(kinds(&second), every_kind(false));
    assert!(second.iter().all(|program| !first.contains(program)), "{first:?} {second:?}");
    stream.wait_for(MEBIBYTE).unwrap();
    assert_eq!(stream.finish().unwrap().peer_seen_by_client, to);
    ask();
    traffic::tcp_exchange_on(node, &pod, Route::translated(to, PORT), MEBIBYTE).unwrap();
}

#[test]
fn what_was_attached_to_another_cgroup_is_detached() {
    let (lab, pod) = lab_with_pod();
    let node = lab.node(0);
    node.kill_agent().unwrap();
    let links = node.bpf_dir().join("links");
    for program in every_kind(false) {
        // The root cgroup has the number 1. No cgroup has the number in the new name.
        let pin = links.join(format!("{program}-cgroup-1"));
        fs::rename(&pin, links.join(format!("{program}-cgroup-{}", u64::MAX))).unwrap();
    }
    node.start_agent().unwrap();
    assert_eq!(kinds(&attached(node)), every_kind(false));
    let to = SocketAddr::new(LOOPBACK.into(), HOST_PORT);
    traffic::tcp_exchange_on(node, &pod, Route::translated(to, PORT), MEBIBYTE).unwrap();
}

#[test]
fn agents_of_one_machine_attach_side_by_side_and_leave() {
    let lab = Lab::builder().build().unwrap();
    let [one, other] = [0, 1].map(|node| attached(lab.node(node)));
    assert!(one.iter().all(|program| !other.contains(program)));
    lab.node(0).restart_agent().unwrap();
    assert_eq!(attached(lab.node(1)), other);
    let all = [attached(lab.node(0)), other].concat();
    assert_eq!(all.len(), 2 * every_kind(false).len());
    drop(lab);
    let left = on_the_root();
    assert!(all.iter().all(|program| !left.contains(program)), "{all:?} {left:?}");
}

#[test]
fn without_a_cgroup_the_agent_serves_and_says_what_is_missing() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    node.start_agent_with(&[("PODWIRE_CGROUP_DIR", "/proc")]).unwrap();
    assert_eq!(attached(node), []);
    let pod = node.add_pod("pod").unwrap();
    traffic::tcp_exchange(node, &pod, pod.address(), PORT, MEBIBYTE).unwrap();
    let missing = comes(node, "host-processes", "do not reach pods' hostPorts");
    assert!(missing.contains("--cgroup-dir /proc is no cgroup2 hierarchy"), "{missing}");
    node.restart_agent().unwrap();
    assert_eq!(conditions(node), [""; 0]);
    assert_eq!(kinds(&attached(node)), every_kind(false));
}

/// A port of the node with a pod's [`PORT`] behind it.
#[derive(Clone, Copy, Debug)]
struct HostPort {
    /// The node's address; `None`: every address of the node.
    address: Option<IpAddr>,
    port: u16,
    protocol: &'static str,
}

impl HostPort {
    fn tcp() -> Self {
        Self { address: None, port: HOST_PORT, protocol: "tcp" }
    }

    fn udp() -> Self {
        Self { protocol: "udp", ..Self::tcp() }
    }
}

/// Returns the addresses of each family by which a node's processes reach its hostPorts.
fn own_addresses(node: &Node) -> [Vec<IpAddr>; 2] {
    [0, 1].map(|family| {
        let alias = Some(ALIAS.into()).filter(|_| family == 0);
        let others = [LOOPBACKS[family], node.addresses()[family], node.overlay_addresses()[family]];
        others.into_iter().chain(alias).collect()
    })
}

fn lab_with_pod() -> (Lab, Pod) {
    let lab = Lab::builder().nodes(1).families(Families::Dual).build().unwrap();
    let pod = pod_with_host_ports(lab.node(0), "pod", &[HostPort::tcp(), HostPort::udp()]);
    (lab, pod)
}

fn pod_with_host_ports(node: &Node, name: &str, ports: &[HostPort]) -> Pod {
    let mappings: Vec<_> =
        ports.iter().map(|HostPort { address, port, protocol }| (*port, PORT, *protocol, *address)).collect();
    node.add_pod_with(name, &host_ports::mappings(&mappings)).unwrap()
}

/// Returns the programs of a node's agent at the root of cgroup2, by number and name. They are the
/// ones that use its maps.
pub fn attached(node: &Node) -> Vec<Attached> {
    let pin = node.bpf_dir().join(maps::REDIRECTED_SOCKETS);
    let map = bpftool(&["map", "show", "pinned", pin.to_str().unwrap()]).unwrap();
    let mut programs = on_the_root();
    programs.retain(|(id, _)| {
        // A program of another lab may be gone by now.
        let program = bpftool(&["prog", "show", "id", &id.to_string()]);
        program.is_some_and(|program| program["map_ids"].as_array().unwrap().contains(&map["id"]))
    });
    programs
}

/// The number and name of a program.
pub type Attached = (u64, String);

fn on_the_root() -> Vec<Attached> {
    let root = cgroup2::root(None).unwrap();
    let shown = bpftool(&["cgroup", "show", root.to_str().unwrap()]).unwrap_or_default();
    let programs = shown.as_array().map(Vec::as_slice).unwrap_or_default();
    programs
        .iter()
        .map(|program| (program["id"].as_u64().unwrap(), program["name"].as_str().unwrap().to_owned()))
        .collect()
}

pub fn kinds(attached: &[Attached]) -> Vec<&str> {
    let mut kinds: Vec<_> = attached.iter().map(|(_, name)| name.as_str()).collect();
    kinds.sort_unstable();
    kinds
}

/// Returns the names of the programs that an agent attaches. Without services it does not look at
/// closed sockets.
pub fn every_kind(has_services: bool) -> Vec<&'static str> {
    let mut kinds = programs::CGROUP.to_vec();
    kinds.retain(|kind| has_services || *kind != "sock_release");
    kinds.sort_unstable();
    kinds
}

/// Runs bpftool. `None`: the object does not exist.
fn bpftool(arguments: &[&str]) -> Option<Value> {
    let output = Command::new("bpftool").arg("--json").args(arguments).output().unwrap();
    // For a cgroup without programs bpftool prints nothing.
    if !output.status.success() || output.stdout.trim_ascii().is_empty() {
        return None;
    }
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

pub fn connect(ns: &Ns, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let to = to.into();
    ns.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()
}

/// Lets the server answer a datagram, and returns the sender of the answer that the client sees.
pub fn answered(client: &UdpSocket, server: &UdpSocket) -> SocketAddr {
    let mut buffer = [0; 64];
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    server.send_to(&buffer[..length], peer).unwrap();
    let (answer, sender) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(answer, length);
    sender
}
