//! Pods' flows to the world: the host's rules see the first packet. All others go past the rules,
//! in both directions.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Node, Pod};

use super::errors::SHRUNK;
use super::{ask, assert_alive, tracked};
use crate::icmp_errors::path_mtu;
use crate::service::drop_invalid;
use crate::sockets::{PATIENCE, UdpSocket, connect_from, listen, udp, wait_until};
use crate::{ANY, FAMILIES, ip_tables, keep_families_apart, world_end};

const MEBIBYTE: usize = 1 << 20;
/// The number of connections, one after the other, from the few source ports of `PORTS`.
const CONNECTIONS: usize = 300;
const PORTS: &str = "40000 40019";

#[test]
fn what_the_hosts_rules_let_begin_goes_on_past_them() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for family in FAMILIES {
            let (datagrams, client) = scene.datagrams(family);
            let to = scene.to(family, 53);
            let connection = scene.connect(family);
            ask(&client, &datagrams, to, "before");
            reject_all(scene.node(), family);
            for round in 0..3 {
                assert_alive(&connection.client, &connection.server, &format!("{mode:?}, {to}, {round}"));
                let peer = ask(&client, &datagrams, to, &format!("{mode:?}, round {round}"));
                assert_eq!(peer.ip(), scene.node().addresses()[family]);
            }
            let begin = || connect_from(&scene.pod, (ANY[family], 0), scene.to(family, 443));
            assert_eq!(
                wait_until(|| begin().err()).map(|error| error.kind()),
                Some(ErrorKind::ConnectionRefused),
                "the new rule sees no new connection to {to}"
            );
            let other = udp(&scene.pod, (ANY[family], 0));
            other.connect(to).unwrap();
            other.send(b"now").unwrap();
            let error = other.recv(&mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{mode:?}, {to}");
        }
    }
}

#[test]
fn connections_past_the_rules_end_as_they_should() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        for family in FAMILIES {
            connections_end_as_they_should(&scene, family);
        }
    }
}

fn connections_end_as_they_should(scene: &Scene, family: usize) {
    let what = format!("{:?}, {}", scene.lab.mode(), scene.to(family, 443));
    let connections = [(); 4].map(|()| scene.connect(family));
    reject_all(scene.node(), family);
    let [by_pod, by_world, reset_by_pod, reset_by_world] = connections;
    for (first, second) in [(by_pod.client, by_pod.server), (by_world.server, by_world.client)] {
        end_by_halves(first, second);
    }
    // The side that closes last waits for the other's acknowledgement.
    for (ns, side) in [(scene.lab.world(), "world"), (&*scene.pod, "pod")] {
        let waiting = || ns.exec(&["ss", "-Htan", "state", "last-ack"]).unwrap();
        assert!(wait_until(|| waiting().is_empty().then_some(())).is_some(), "{what}, {side}: {}", waiting());
    }
    for (resets, told) in
        [(reset_by_pod.client, reset_by_pod.server), (reset_by_world.server, reset_by_world.client)]
    {
        set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
        drop(resets);
        told.set_read_timeout(Some(PATIENCE)).unwrap();
        let error = (&told).read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}");
    }
    let tracked = tracked(scene.node(), family, &["-p", "tcp"]);
    let entries: Vec<_> = tracked.lines().filter(|line| line.contains(" dport=443 ")).collect();
    assert!(
        !entries.is_empty(),
        "{what}: the rules have not seen the first packet of any connection: {tracked}"
    );
    assert!(entries.iter().all(|entry| entry.contains("SYN_SENT")), "{what}: {tracked}");
}

#[test]
fn lossy_half_closed_transfer_lives_beside_kube_proxys_rule() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = &Scene::new(mode);
        drop_invalid(&scene.lab);
        // The connections of both families wait for lost packets at the same time.
        std::thread::scope(|scope| {
            for family in FAMILIES {
                scope.spawn(move || transfer_half_closed_with_losses(scene, family));
            }
        });
    }
}

fn transfer_half_closed_with_losses(scene: &Scene, family: usize) {
    for way in ["-i world", "-o world"] {
        let rule = format!("-A FORWARD {way} -p tcp -m statistic --mode nth --every 40 --packet 3 -j DROP");
        ip_tables(scene.lab.underlay(), family, &rule);
    }
    let Connection { client, server } = scene.connect(family);
    let (there, back) = (pattern(8 * MEBIBYTE), pattern(4 * MEBIBYTE));
    for (from, to, data) in [(&client, &server, &there), (&server, &client, &back)] {
        transfer(from, to, data);
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut [0]).unwrap(), 0, "the server sees the client's FIN");
    transfer(&server, &client, &there);
    drop(server);
    assert_eq!((&client).read(&mut [0]).unwrap(), 0, "{:?}", scene.lab.mode());
}

#[test]
fn few_ports_serve_many_connections_beside_kube_proxys_rule() {
    let scene = Scene::new(Mode::Vxlan);
    drop_invalid(&scene.lab);
    // These ports are for both families.
    scene.pod.sysctl("net/ipv4/ip_local_port_range", PORTS).unwrap();
    for family in FAMILIES {
        for number in 0..CONNECTIONS {
            let Connection { client, server } = scene.connect(family);
            assert_alive(&client, &server, &format!("connection {number}"));
            // The server closes first, so the client's port is free at once.
            drop(server);
            assert_eq!((&client).read(&mut [0]).unwrap(), 0, "connection {number}");
        }
        let tracked = tracked(scene.node(), family, &["-p", "tcp"]);
        assert!(!tracked.contains("ESTABLISHED") && tracked.contains("SYN_SENT"), "{tracked}");
    }
}

#[test]
fn error_about_a_flow_that_conntrack_forgot_reaches_the_pod() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        for family in FAMILIES {
            let (server, client) = scene.datagrams(family);
            let to = scene.to(family, 53);
            for round in ["first", "second"] {
                ask(&client, &server, to, round);
            }
            scene.node().exec(&["conntrack", "-F"]).unwrap();
            assert!(!tracked(scene.node(), family, &["-p", "udp"]).contains(" dport=53 "), "{to}");
            drop(server);
            client.connect(to).unwrap();
            // A process that another test starts may hold the server's socket for a moment.
            client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let refused = wait_until(|| {
                let error = client.send(b"anybody?").and_then(|_| client.recv(&mut [0; 10])).err()?;
                (error.kind() == ErrorKind::ConnectionRefused).then_some(())
            });
            assert!(refused.is_some(), "{mode:?}: no error about the closed port of {to} came");
        }
    }
}

#[test]
fn pings_that_have_been_answered_go_past_the_rules() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for family in FAMILIES {
            let world = world_end(&scene.lab, family).1.to_string();
            let ping =
                |identifier| scene.pod.exec(&["ping", "-n", "-e", identifier, "-c", "2", "-W", "5", &world]);
            ping("7777").unwrap();
            reject_all(scene.node(), family);
            ping("7777").unwrap_or_else(|error| panic!("{mode:?}: {error}"));
            assert!(ping("7778").is_err(), "{mode:?}, {world}: a new ping went past the rule");
        }
    }
}

#[test]
fn a_path_that_shrinks_is_told_to_the_sender_of_datagrams() {
    const SIZE: usize = 1400;
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let flows = FAMILIES.map(|family| scene.datagrams(family));
        let large = "l".repeat(SIZE);
        for (family, (server, client)) in flows.iter().enumerate() {
            for _ in 0..3 {
                ask(client, server, scene.to(family, 53), &large);
            }
        }
        scene.lab.underlay().ip(SHRUNK).unwrap();
        for (family, (server, client)) in flows.iter().enumerate() {
            let to = scene.to(family, 53);
            client.send_to(large.as_bytes(), to).unwrap();
            assert_eq!(wait_until(|| path_mtu(&scene.pod, to.ip())), Some(1280), "{mode:?}, {to}");
            ask(client, server, to, &large);
        }
    }
}

/// A node with a pod, and a world. The next hop to the world is already resolved. Otherwise the
/// first packet would wait for the link address, and the programs would not see it leave unchanged.
pub(super) struct Scene {
    pub(super) pod: Pod,
    /// The world's server of each family.
    listeners: [TcpListener; 2],
    pub(super) lab: Lab,
}

impl Scene {
    pub(super) fn new(mode: Mode) -> Self {
        Self::of(Lab::builder().nodes(1).mode(mode).build().unwrap())
    }

    pub(super) fn of(lab: Lab) -> Self {
        for address in lab.world_addresses() {
            traffic::ping(lab.node(0), address, 56).unwrap();
        }
        let pod = lab.node(0).add_pod("client").unwrap();
        keep_families_apart(&[lab.world(), &pod]);
        Self { pod, listeners: ANY.map(|any| listen(lab.world(), (any, 443))), lab }
    }

    pub(super) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Returns the world's address of a family with a port.
    pub(super) fn to(&self, family: usize, port: u16) -> SocketAddr {
        SocketAddr::new(world_end(&self.lab, family).1, port)
    }

    /// Returns a socket of the world at port 53, and one of the pod at port 40000.
    pub(super) fn datagrams(&self, family: usize) -> (UdpSocket, UdpSocket) {
        (udp(self.lab.world(), (ANY[family], 53)), udp(&self.pod, (ANY[family], 40000)))
    }

    pub(super) fn connect(&self, family: usize) -> Connection {
        self.connect_to(self.to(family, 443).ip())
    }

    /// Connects to the world's server by any address that leads there.
    pub(super) fn connect_to(&self, address: IpAddr) -> Connection {
        let family = usize::from(address.is_ipv6());
        let client = connect_from(&self.pod, (ANY[family], 0), (address, 443)).unwrap();
        Connection { client, server: self.accept(family) }
    }

    /// Accepts a connection and returns the world's end. The pod or the host may have begun it.
    pub(super) fn accept(&self, family: usize) -> TcpStream {
        let (server, peer) = self.listeners[family].accept().unwrap();
        assert_eq!(peer.ip(), self.node().addresses()[family]);
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server
    }
}

/// Both ends of a connection.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

/// Refuses all forwarded packets of a family at once.
fn reject_all(node: &Node, family: usize) {
    ip_tables(node, family, "-I FORWARD -j REJECT");
}

/// Ends a connection by halves: one side is done, and the other goes on for a while.
fn end_by_halves(first: TcpStream, second: TcpStream) {
    first.shutdown(Shutdown::Write).unwrap();
    for end in [&first, &second] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    assert_eq!((&second).read(&mut [0; 10]).unwrap(), 0);
    (&second).write_all(b"and another thing").unwrap();
    drop(second);
    let mut heard = String::new();
    (&first).read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "and another thing");
}

fn transfer(mut from: &TcpStream, mut to: &TcpStream, data: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(data).unwrap());
        let mut heard = vec![0; data.len()];
        to.read_exact(&mut heard).unwrap();
        assert!(heard == data, "bytes changed on their way");
    });
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7) as u8).collect()
}
