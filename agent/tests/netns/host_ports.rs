//! hostPorts: every host that reaches the node reaches the pod, past the host's own rules. The pod
//! sees the client's own address.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podwire_common::names::maps;
use podwire_common::reason::Path::{
    self, FromStack, Hairpin, HostPortIn, HostPortOut, SnatOut, TunnelOutDevice,
};
use serde_json::{Value, json};
use xtask::family_table;
use xtask::lab::traffic::{self, Exchange, Route};
use xtask::lab::{Builder, Families, Lab, Mode, Node, Ns, Pod};

use crate::check::Counted;
use crate::sockets::{connect_from, listen, udp, unspecified, wait_until};
use crate::sweep::{comes, goes};

const HOST_IP_ABSENT: &str = "host-ip-absent";

/// The port on which the pod listens.
const PORT: u16 = 8080;
/// A hostPort on every address of the node.
const ANYWHERE: u16 = 9088;
/// A hostPort on the node's InternalIP of each family.
const HERE: u16 = 9089;
/// A second hostPort of the same pod.
const SECOND: u16 = 9090;
/// A hostPort on every IPv4 address of the node, and one on every IPv6 address.
const ANYWHERE_IN: [u16; 2] = [9091, 9092];
const IPTABLES: [&str; 2] = ["iptables", "ip6tables"];
const STREAM: u64 = 1 << 20;
const ECHOED: usize = 4 << 20;
const DATAGRAM: usize = 1000;
/// A datagram of three fragments.
const LARGE_DATAGRAM: usize = 4000;
/// What the packets of a client take in both directions.
const BOTH_WAYS: &[Path] = &[HostPortIn, HostPortOut];
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn everybody_reaches_a_host_port_in_vxlan_mode() {
    everybody_reaches_a_host_port(&Places::new(Mode::Vxlan));
}

#[test]
fn everybody_reaches_a_host_port_in_a_tunnel_of_ipv6() {
    everybody_reaches_a_host_port(&Places::in_a_tunnel_of_ipv6());
}

#[test]
fn everybody_reaches_a_host_port_in_direct_routing() {
    everybody_reaches_a_host_port(&Places::new(Mode::Direct));
}

#[test]
fn host_ports_beyond_what_the_node_can_have_are_refused() {
    let many = |first: u16, count: u16| {
        let mapping = |port| json!({ "hostPort": port, "containerPort": PORT, "protocol": "tcp" });
        json!({ "portMappings": (first..first + count).map(mapping).collect::<Vec<_>>() })
    };
    for (arguments, capacity) in [(&[][..], 4096), (&["--max-host-ports", "5000"], 5000)] {
        let lab = Lab::builder().nodes(1).agent_arguments(arguments).build().unwrap();
        let node = lab.node(0);
        let has = node.add_pod_with("has", &many(10_000, 100)).unwrap();
        // Each hostPort has an entry for each family.
        let fitting = capacity / 2;
        let refused = node.add_pod_with("refused", &many(20_000, fitting - 99)).unwrap_err().to_string();
        for part in ["200 of the", &capacity.to_string(), "--max-host-ports"] {
            assert!(refused.contains(part), "{part}: {refused:.2000}");
        }
        has.delete().unwrap();
        let pod = node.add_pod_again("refused", &many(20_000, fitting)).unwrap();
        let last = SocketAddr::new(node.address(), 20_000 + fitting - 1);
        traffic::tcp_exchange_on(lab.world(), &pod, Route::translated(last, PORT), STREAM).unwrap();
    }
}

fn everybody_reaches_a_host_port(places: &Places) {
    let mut failures = String::new();
    for (family, node) in places.node().addresses().into_iter().enumerate() {
        for client in places.clients(family) {
            for (what, host_port) in
                [("every address", ANYWHERE), ("one address", HERE), ("its family", ANYWHERE_IN[family])]
            {
                let path = format!("{} to a hostPort of {what}", client.name);
                family_table::record(&places.lab, &path, node).unwrap();
                let route = Route::translated(SocketAddr::new(node, host_port), PORT);
                let pod = &places.pod;
                let datagram = |size| traffic::udp_exchange_on(client.ns, pod, route, size);
                let mut protocol = |protocol: &str, exchange: &dyn Fn() -> Result<Exchange>| {
                    if let Err(error) = client.check(&places.lab, exchange) {
                        let to = route.destination;
                        writeln!(failures, "{} to {to}, {protocol}: {error:#}", client.name).unwrap();
                    }
                };
                protocol("TCP", &|| traffic::tcp_exchange_on(client.ns, pod, route, STREAM));
                protocol("UDP", &|| datagram(DATAGRAM));
                protocol("UDP in fragments", &|| datagram(LARGE_DATAGRAM));
            }
            let of_other_family = SocketAddr::new(node, ANYWHERE_IN[1 - family]);
            let refused = connect_from(client.ns, (unspecified(node), 0), of_other_family).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{} to {of_other_family}", client.name);
        }
    }
    assert!(failures.is_empty(), "{:?}\n{failures}", places.lab.mode());
    assert_eq!(places.forwarded(), 0, "packets passed the host's rules");
    // The rules do see what they should: a pod's packets to the world.
    for (address, dropped) in places.lab.world_addresses().into_iter().zip(1..) {
        let socket = udp(&places.near, (unspecified(address), 0));
        socket.send_to(b"dropped", (address, PORT)).unwrap();
        let counted = wait_until(|| (places.forwarded() == dropped).then_some(()));
        assert!(counted.is_some(), "the DROP rule has not counted the packet to {address}");
    }
}

#[test]
fn much_goes_both_ways_at_once() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let places = Places::new(mode);
        for (family, node) in places.node().addresses().into_iter().enumerate() {
            for client in places.clients(family) {
                let destination = SocketAddr::new(node, ANYWHERE);
                echo_stream(client.ns, &places.pod, destination)
                    .unwrap_or_else(|error| panic!("{mode:?}, {} to {node}: {error:#}", client.name));
            }
        }
    }
}

#[test]
fn narrow_path_to_the_client_of_a_host_port_is_found_out() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let places = Places::new(mode);
        let lab = &places.lab;
        // Lower the MTU of the route, not of the link. Then the client does not know it, and does
        // not announce it in its SYN.
        lab.underlay()
            .ip("route change 198.51.100.0/24 dev world src 198.51.100.1 proto kernel scope link mtu lock 1300\nroute replace 2001:db8::/64 dev world proto kernel metric 256 mtu lock 1300\n")
            .unwrap();
        for (node, world) in places.node().addresses().into_iter().zip(lab.world_addresses()) {
            echo_stream(lab.world(), &places.pod, SocketAddr::new(node, ANYWHERE)).unwrap();
            let known = places.pod.exec(&["ip", "route", "get", &world.to_string()]).unwrap();
            assert!(known.contains("mtu 1300"), "{mode:?}: the pod has not learnt the MTU: {known}");
        }
    }
}

#[test]
fn narrow_link_is_found_out_though_datagrams_may_be_cut() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).families(Families::Dual);
        let lab = lab.agent_arguments(&["--uplink", "eth0,eth1"]).agents(false).build().unwrap();
        let node = lab.node(0);
        let other = lab.add_namespace("other").unwrap();
        xtask::lab::connect(node, "eth1", &other, "eth0").unwrap();
        other.sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        for (ns, link, last) in [(&**node, "eth1", 1), (&other, "eth0", 2)] {
            ns.ip(&format!("address add 192.168.7.{last}/24 dev {link}\naddress add fd00:7::{last}/64 dev {link} nodad\nlink set dev {link} mtu 1300\n")).unwrap();
        }
        node.start_agent().unwrap();
        let pod = node.add_pod_with("server", &mappings(&[(ANYWHERE, PORT, "udp", None)])).unwrap();
        for address in ["192.168.7.1", "fd00:7::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
            let any = unspecified(address);
            let (server, client) = (udp(&pod, (any, PORT)), udp(&other, (any, 0)));
            client.send_to(&[0; 100], (address, ANYWHERE)).unwrap();
            let (_, peer) = server.recv_from(&mut [0; 100]).unwrap();
            // The first datagram is lost: its fragments are too large for the link, and the programs
            // cannot cut them. They tell the pod the MTU, and the second one has smaller fragments.
            for _ in 0..2 {
                server.send_to(&[0; LARGE_DATAGRAM], peer).unwrap();
            }
            let received = client.recv(&mut [0; LARGE_DATAGRAM]);
            let received = received.unwrap_or_else(|error| panic!("{mode:?}, {address}: {error}"));
            assert_eq!(received, LARGE_DATAGRAM);
        }
    }
}

#[test]
fn two_host_ports_of_one_pod_are_told_apart_from_one_client() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let places = Places::new(mode);
        for family in [0, 1] {
            two_host_ports_are_told_apart(&places, family);
        }
    }
}

fn two_host_ports_are_told_apart(places: &Places, family: usize) {
    let node = places.node().addresses()[family];
    let any = unspecified(node);
    let destinations = [ANYWHERE, SECOND].map(|port| SocketAddr::new(node, port));
    for (index, client) in places.clients(family).iter().enumerate() {
        // Each client has its own port: a closed connection keeps its port for a while.
        let port = 45_000 + index as u16;
        let what = format!("{}, {} by {node}", places.lab.name(), client.name);
        let server = udp(&places.pod, (any, PORT));
        let socket = udp(client.ns, (any, port));
        let peers = destinations.map(|destination| {
            socket.send_to(&[0; 100], destination).unwrap();
            server.recv_from(&mut [0; 100]).unwrap_or_else(|error| panic!("{what}: {error}")).1
        });
        assert_eq!(peers.map(|peer| peer.ip()), [client.seen_as; 2], "{what}");
        assert_ne!(peers[0].port(), peers[1].port(), "{what}");
        // Answer in the opposite order.
        for (peer, destination) in peers.into_iter().zip(destinations).rev() {
            server.send_to(&[0; 100], peer).unwrap();
            let received = socket.recv_from(&mut [0; 100]);
            let (_, from) =
                received.unwrap_or_else(|error| panic!("{what}: {error}; {}", Counted::now(&places.lab)));
            assert_eq!(from, destination, "{what}");
        }

        let listener = listen(&places.pod, (any, PORT));
        let mut connections = destinations.map(|destination| {
            let client = connect_from(client.ns, (any, port), destination)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            (client, listener.accept().unwrap())
        });
        assert_ne!(connections[0].1.1.port(), connections[1].1.1.port(), "{what}");
        for (number, (client, (server, _))) in connections.iter_mut().enumerate().rev() {
            let sent = [number as u8; 100];
            server.write_all(&sent).unwrap();
            let mut received = [0xff; 100];
            client.read_exact(&mut received).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(received, sent, "{what}");
        }
    }
}

#[test]
fn a_pod_that_reaches_itself_shows_in_the_map() {
    let places = Places::new(Mode::Vxlan);
    let hairpins = || {
        let dump = places.node().map_dump(maps::TRANSLATIONS).unwrap();
        let halves = dump.as_array().unwrap().iter().map(|entry| &entry["formatted"]["value"]);
        let of = |half: &Value| (half["hairpin"].as_u64().unwrap(), half["reply"].as_u64().unwrap());
        let mut shown: Vec<(u64, u64)> = halves.map(of).collect();
        shown.sort_unstable();
        shown
    };
    for (node, flows) in places.node().addresses().into_iter().zip(1..) {
        let route = Route::translated(SocketAddr::new(node, ANYWHERE), PORT);
        traffic::udp_exchange_on(places.lab.world(), &places.pod, route, DATAGRAM).unwrap();
        traffic::udp_exchange_on(&places.pod, &places.pod, route, DATAGRAM).unwrap();
        let of_each = |half| std::iter::repeat_n(half, flows);
        let expected: Vec<_> = [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().flat_map(of_each).collect();
        assert_eq!(hairpins(), expected);
    }
}

#[test]
fn every_address_of_the_node_is_every_one_that_it_has() {
    let bridge = [IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1)), "fd00:172::1".parse().unwrap()];
    let later = [IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)), "2001:db8:5::5".parse().unwrap()];
    let lab = Lab::builder().nodes(1).families(Families::Dual).build().unwrap();
    let node = lab.node(0);
    let wanted = mappings(&[
        (ANYWHERE, PORT, "tcp", None),
        (HERE, PORT, "tcp", Some(later[0])),
        (HERE, PORT, "tcp", Some(later[1])),
    ]);
    let pod = node.add_pod_with("pod", &wanted).unwrap();
    let absent = comes(node, HOST_IP_ABSENT, pod.host_interface());
    assert!(absent.contains(&format!("hostIP {}, {}", later[0], later[1])), "{absent}");
    node.ip("link add docker0 type bridge\nlink set docker0 up\n").unwrap();
    for address in bridge.into_iter().chain(later) {
        let nodad = if address.is_ipv6() { "nodad" } else { "" };
        node.ip(&format!("address add {address} dev docker0 {nodad}\n")).unwrap();
        let of_family = |of: &IpAddr| of.is_ipv4() == address.is_ipv4();
        let via = node.addresses().into_iter().find(of_family).unwrap();
        lab.underlay().ip(&format!("route add {address} via {via}\n")).unwrap();
    }
    // The agent looks at the addresses when it starts.
    node.restart_agent().unwrap();
    goes(node, HOST_IP_ABSENT);
    for (world, family) in lab.world_addresses().into_iter().zip(0..) {
        let (bridge, later) = (bridge[family], later[family]);
        for (address, port) in [(bridge, ANYWHERE), (later, ANYWHERE), (later, HERE)] {
            let route = Route::translated(SocketAddr::new(address, port), PORT);
            let exchange = traffic::tcp_exchange_on(lab.world(), &pod, route, STREAM).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), world);
            assert_eq!(exchange.peer_seen_by_client, route.destination);
        }
    }
}

/// A pod with hostPorts on a node that forwards nothing by its own rules, and the pod's clients.
struct Places {
    pod: Pod,
    near: Pod,
    far: Pod,
    /// What the packets of a pod of the other node take, by family.
    far_takes: [&'static [Path]; 2],
    lab: Lab,
}

impl Places {
    fn new(mode: Mode) -> Self {
        Self::of(Lab::builder().mode(mode), [BOTH_WAYS; 2])
    }

    fn in_a_tunnel_of_ipv6() -> Self {
        // The VXLAN device writes outer headers of IPv6 around IPv4.
        Self::of(
            Lab::builder().agent_arguments(&["--tunnel-family", "ipv6"]),
            [&[HostPortIn, TunnelOutDevice], BOTH_WAYS],
        )
    }

    fn of(lab: Builder, far_takes: [&'static [Path]; 2]) -> Self {
        let lab = lab.families(Families::Dual).build().unwrap();
        for node in lab.nodes() {
            for tool in IPTABLES {
                node.exec(&[tool, "-w", "-P", "FORWARD", "DROP"]).unwrap();
                // This rule is behind all others and counts packets.
                node.exec(&[tool, "-w", "-A", "FORWARD", "-j", "DROP"]).unwrap();
            }
        }
        let mut wanted = vec![(ANYWHERE, None), (SECOND, None)];
        for (address, port) in lab.node(0).addresses().into_iter().zip(ANYWHERE_IN) {
            wanted.extend([(HERE, Some(address)), (port, Some(unspecified(address)))]);
        }
        let of_protocols = |(port, address)| ["tcp", "udp"].map(|protocol| (port, PORT, protocol, address));
        let wanted: Vec<_> = wanted.into_iter().flat_map(of_protocols).collect();
        Self {
            pod: lab.node(0).add_pod_with("pod", &mappings(&wanted)).unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            far_takes,
            lab,
        }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Returns the packets that the node's rules for forwarded packets have seen.
    fn forwarded(&self) -> u64 {
        let by = |tool| {
            let rules = self.node().exec(&[tool, "-w", "-nvxL", "FORWARD"]).unwrap();
            // The output has two lines of heading, then `pkts bytes target ...`.
            let rule = rules.lines().nth(2).and_then(|line| line.split_whitespace().next());
            rule.unwrap_or_else(|| panic!("no rule: {rules}")).parse::<u64>().unwrap()
        };
        IPTABLES.map(by).iter().sum()
    }

    /// Returns the clients, with their addresses of a family.
    fn clients(&self, family: usize) -> [Client<'_>; 5] {
        let (lab, other) = (&self.lab, self.lab.node(1));
        [
            Client::new("the world", lab.world(), lab.world_addresses()[family]),
            Client::new("another node", other, other.addresses()[family]),
            Client::new("a pod of the node", &self.near, self.near.addresses()[family]),
            Client {
                takes: self.far_takes[family],
                ..Client::new("a pod of another node", &self.far, self.far.addresses()[family])
            },
            Client {
                takes: &[Hairpin],
                avoids: &[HostPortIn, HostPortOut, FromStack, SnatOut],
                ..Client::new("the pod itself", &self.pod, self.node().overlay_addresses()[family])
            },
        ]
    }
}

/// A client, as the pod behind the hostPort must see it.
struct Client<'a> {
    name: &'a str,
    ns: &'a Ns,
    seen_as: IpAddr,
    takes: &'a [Path],
    avoids: &'a [Path],
}

impl<'a> Client<'a> {
    fn new(name: &'a str, ns: &'a Ns, seen_as: IpAddr) -> Self {
        Self { name, ns, seen_as, takes: BOTH_WAYS, avoids: &[Hairpin, FromStack, SnatOut] }
    }

    /// Checks that the exchange succeeds (its answers come from the address that was asked), that
    /// the pod sees this client, and that the packets took the client's paths.
    fn check(&self, lab: &Lab, exchange: &dyn Fn() -> Result<Exchange>) -> Result<()> {
        let before = Counted::quiet(lab);
        let outcome = exchange();
        let grown = Counted::quiet(lab).since(&before);
        let seen = outcome.with_context(|| grown.to_string())?.peer_seen_by_server.ip();
        ensure!(seen == self.seen_as, "the pod saw {seen} and not {}; {grown}", self.seen_as);
        let on_node = |paths: &[Path]| paths.iter().map(|path| (0, *path)).collect::<Vec<_>>();
        grown.expect(&on_node(self.takes), &on_node(self.avoids))
    }
}

/// Sends much to a server that sends it back at once, and compares.
fn echo_stream(from: &Ns, to: &Ns, destination: SocketAddr) -> Result<()> {
    let listener = listen(to, (unspecified(destination.ip()), PORT));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        std::io::copy(&mut stream.try_clone()?, &mut stream)
    });
    let mut stream = from.enter(|| TcpStream::connect_timeout(&destination, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0..ECHOED).map(|at| (at % 251) as u8).collect();
    let mut received = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let mut writer = stream.try_clone()?;
        let sent = &sent;
        let writing = scope.spawn(move || {
            writer.write_all(sent)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut received)?;
        writing.join().unwrap().context("send")
    })?;
    server.join().unwrap().context("server")?;
    ensure!(received == sent, "{} of {} bytes came back, or other bytes", received.len(), sent.len());
    Ok(())
}

/// Returns a `runtimeConfig` with hostPorts: the node's port, the pod's port, protocol, hostIP.
pub fn mappings(wanted: &[(u16, u16, &str, Option<IpAddr>)]) -> Value {
    let entries = wanted.iter().map(|(host, container, protocol, address)| {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        // containerd spells the keys like this.
        json!({ "HostPort": host, "ContainerPort": container, "Protocol": protocol, "HostIP": address })
    });
    json!({ "portMappings": entries.collect::<Value>() })
}
