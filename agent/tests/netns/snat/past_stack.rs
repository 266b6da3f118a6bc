//! Pods' flows to the world: the host's rules see the first packet. All others go past the rules,
//! in both directions.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode, Node, Pod};

use super::{ask, assert_alive};
use crate::service::{drop_invalid, iptables};
use crate::sockets::{PATIENCE, connect_from, listen, udp, wait_until};

const MEBIBYTE: usize = 1 << 20;
/// The number of connections, one after the other, from the few source ports of `PORTS`.
const CONNECTIONS: usize = 300;
const PORTS: &str = "40000 40019";

#[test]
fn what_the_hosts_rules_let_begin_goes_on_past_them() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let datagrams = udp(scene.lab.world(), "0.0.0.0:53");
        let client = udp(&scene.pod, "0.0.0.0:40000");
        let to = scene.to(53);
        let connection = scene.connect();
        ask(&client, &datagrams, to, "before");
        reject_all(scene.node());
        for round in 0..3 {
            assert_alive(&connection.client, &connection.server, &format!("{mode:?}, round {round}"));
            let peer = ask(&client, &datagrams, to, &format!("{mode:?}, round {round}"));
            assert_eq!(peer.ip(), scene.node().address());
        }
        let refused = wait_until(|| connect_from(&scene.pod, "0.0.0.0:0", scene.to(443)).err());
        assert_eq!(
            refused.map(|error| error.kind()),
            Some(ErrorKind::ConnectionRefused),
            "the new rule sees no new connection"
        );
        let other = udp(&scene.pod, "0.0.0.0:0");
        other.connect(to).unwrap();
        other.send(b"now").unwrap();
        assert_eq!(other.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{mode:?}");
    }
}

#[test]
fn connections_past_the_rules_end_as_they_should() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let world = scene.lab.world();
        let connections = [(); 4].map(|()| scene.connect());
        reject_all(scene.node());
        let [by_pod, by_world, reset_by_pod, reset_by_world] = connections;
        for (first, second) in [(by_pod.client, by_pod.server), (by_world.server, by_world.client)] {
            end_by_halves(first, second);
        }
        // The side that closes last waits for the other's acknowledgement.
        for (ns, side) in [(world, "world"), (&*scene.pod, "pod")] {
            let waiting = || ns.exec(&["ss", "-Htan", "state", "last-ack"]).unwrap();
            assert!(
                wait_until(|| waiting().is_empty().then_some(())).is_some(),
                "{mode:?}, {side}: {}",
                waiting()
            );
        }
        for (resets, told) in
            [(reset_by_pod.client, reset_by_pod.server), (reset_by_world.server, reset_by_world.client)]
        {
            set_socket_linger(&resets, Some(Duration::ZERO)).unwrap();
            drop(resets);
            told.set_read_timeout(Some(PATIENCE)).unwrap();
            let error = (&told).read(&mut [0; 10]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{mode:?}");
        }
        let tracked = scene.node().exec(&["conntrack", "-L", "-p", "tcp"]).unwrap();
        let entries: Vec<_> = tracked.lines().filter(|line| line.contains(" dport=443 ")).collect();
        assert!(
            !entries.is_empty(),
            "{mode:?}: the rules have not seen the first packet of any connection: {tracked}"
        );
        assert!(entries.iter().all(|entry| entry.contains("SYN_SENT")), "{mode:?}: {tracked}");
    }
}

#[test]
fn lossy_half_closed_transfer_lives_beside_kube_proxys_rule() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        for way in ["-i world", "-o world"] {
            iptables(
                scene.lab.underlay(),
                &format!("-A FORWARD {way} -p tcp -m statistic --mode nth --every 40 --packet 3 -j DROP"),
            );
        }
        let Connection { client, server } = scene.connect();
        let (there, back) = (pattern(8 * MEBIBYTE), pattern(4 * MEBIBYTE));
        for (from, to, data) in [(&client, &server, &there), (&server, &client, &back)] {
            transfer(from, to, data);
        }
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&server).read(&mut [0]).unwrap(), 0, "the server sees the client's FIN");
        transfer(&server, &client, &there);
        drop(server);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0, "{mode:?}");
    }
}

#[test]
fn few_ports_serve_many_connections_beside_kube_proxys_rule() {
    let scene = Scene::new(Mode::Vxlan);
    drop_invalid(&scene.lab);
    scene.pod.sysctl("net/ipv4/ip_local_port_range", PORTS).unwrap();
    for number in 0..CONNECTIONS {
        let Connection { client, server } = scene.connect();
        assert_alive(&client, &server, &format!("connection {number}"));
        // The server closes first, so the client's port is free at once.
        drop(server);
        assert_eq!((&client).read(&mut [0]).unwrap(), 0, "connection {number}");
    }
    let tracked = scene.node().exec(&["conntrack", "-L", "-p", "tcp"]).unwrap();
    assert!(!tracked.contains("ESTABLISHED") && tracked.contains("SYN_SENT"), "{tracked}");
}

#[test]
fn error_about_a_flow_that_conntrack_forgot_reaches_the_pod() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let server = udp(scene.lab.world(), "0.0.0.0:53");
        let client = udp(&scene.pod, "0.0.0.0:40000");
        for round in ["first", "second"] {
            ask(&client, &server, scene.to(53), round);
        }
        scene.node().exec(&["conntrack", "-F"]).unwrap();
        drop(server);
        client.connect(scene.to(53)).unwrap();
        // A process that another test starts may hold the server's socket for a moment.
        client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let refused = wait_until(|| {
            let error = client.send(b"anybody?").and_then(|_| client.recv(&mut [0; 10])).err()?;
            (error.kind() == ErrorKind::ConnectionRefused).then_some(())
        });
        assert!(refused.is_some(), "{mode:?}: no error about the closed port came");
    }
}

#[test]
fn pings_that_have_been_answered_go_past_the_rules() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let world = scene.lab.world_address().to_string();
        let ping =
            |identifier| scene.pod.exec(&["ping", "-n", "-e", identifier, "-c", "2", "-W", "5", &world]);
        ping("7777").unwrap();
        reject_all(scene.node());
        ping("7777").unwrap_or_else(|error| panic!("{mode:?}: {error}"));
        assert!(ping("7778").is_err(), "{mode:?}: a new ping went past the rule");
    }
}

#[test]
fn a_path_that_shrinks_is_told_to_the_sender_of_datagrams() {
    const SIZE: usize = 1400;
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let server = udp(scene.lab.world(), "0.0.0.0:53");
        let client = udp(&scene.pod, "0.0.0.0:40000");
        let large = "l".repeat(SIZE);
        for _ in 0..3 {
            ask(&client, &server, scene.to(53), &large);
        }
        let shrunk = "src 198.51.100.1 proto kernel scope link mtu lock 1280";
        scene.lab.underlay().ip(&format!("route change 198.51.100.0/24 dev world {shrunk}\n")).unwrap();
        client.send_to(large.as_bytes(), scene.to(53)).unwrap();
        let world = scene.lab.world_address().to_string();
        let route = || scene.pod.exec(&["ip", "route", "get", &world]).unwrap();
        let told = wait_until(|| route().contains("mtu 1280").then_some(()));
        assert!(told.is_some(), "{mode:?}: {}", route());
        ask(&client, &server, scene.to(53), &large);
    }
}

/// A node with a pod, and a world. The next hop to the world is already resolved. Otherwise the
/// first packet would wait for the link address, and the programs would not see it leave unchanged.
pub(super) struct Scene {
    pub(super) pod: Pod,
    listener: TcpListener,
    pub(super) lab: Lab,
}

impl Scene {
    pub(super) fn new(mode: Mode) -> Self {
        Self::of(Lab::builder().nodes(1).mode(mode).build().unwrap())
    }

    pub(super) fn of(lab: Lab) -> Self {
        traffic::ping(lab.node(0), lab.world_address(), 56).unwrap();
        let pod = lab.node(0).add_pod("client").unwrap();
        Self { pod, listener: listen(lab.world(), "0.0.0.0:443"), lab }
    }

    pub(super) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    pub(super) fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.lab.world_address(), port)
    }

    pub(super) fn connect(&self) -> Connection {
        self.connect_to(self.lab.world_address())
    }

    /// Connects to the world's server by any address that leads there.
    pub(super) fn connect_to(&self, address: IpAddr) -> Connection {
        let client = connect_from(&self.pod, "0.0.0.0:0", (address, 443)).unwrap();
        Connection { client, server: self.accept() }
    }

    /// Accepts a connection and returns the world's end. The pod or the host may have begun it.
    pub(super) fn accept(&self) -> TcpStream {
        let (server, peer) = self.listener.accept().unwrap();
        assert_eq!(peer.ip(), self.node().address());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        server
    }
}

/// Both ends of a connection.
pub(super) struct Connection {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

/// Refuses all forwarded packets at once.
fn reject_all(node: &Node) {
    iptables(node, "-I FORWARD -j REJECT");
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
