//! Services with session affinity: pods, the node's own processes and clients outside keep their
//! backends.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Mode, Node, Ns, Pod};

use crate::host_processes::connect;
use crate::service::service;
use crate::service_processes::forgets_all;
use crate::services::{ENTRIES, OPEN_ENTRIES, POD_PORT, SERVICE_PORT, lab, object, put_object};
use crate::sockets::{UdpSocket, listen, udp, unspecified, wait_until};
use crate::{FAMILIES, world_end};

const LAST: u8 = 0x48;
const NODE_PORT: u16 = 30_080;
/// Longer than any test.
const LONG: u32 = 10_800;
/// A random choice among three is the same each time in one of 10^9 runs.
const CONNECTIONS: usize = 20;

/// Pods on the first node, and a service with three pods on both nodes.
struct Sticky {
    clients: [Pod; 2],
    pods: [Pod; 3],
    lab: Lab,
    seconds: u32,
}

impl Sticky {
    fn new(seconds: u32) -> Self {
        let lab = lab(Mode::Vxlan);
        let sticky = Self {
            clients: ["client", "other"].map(|name| lab.node(0).add_pod(name).unwrap()),
            pods: [(0, "near"), (1, "far"), (1, "third")]
                .map(|(node, name)| lab.node(node).add_pod(name).unwrap()),
            lab,
            seconds,
        };
        sticky.serve(&[0, 1, 2]);
        sticky
    }

    /// Returns the Service object.
    fn object(&self) -> Value {
        let mut object = object("sticky", service(LAST));
        object["spec"]["type"] = "NodePort".into();
        for port in object["spec"]["ports"].as_array_mut().unwrap() {
            port["nodePort"] = NODE_PORT.into();
        }
        object["spec"]["sessionAffinity"] = "ClientIP".into();
        object["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": self.seconds } });
        object
    }

    /// Gives the service these backends.
    fn serve(&self, backends: &[usize]) {
        let of_family = |family: usize| -> Vec<IpAddr> {
            backends.iter().map(|index| self.pods[*index].addresses()[family]).collect()
        };
        put_object(
            &self.lab,
            "sticky",
            self.object(),
            [&of_family(0), &of_family(1)],
            ENTRIES + OPEN_ENTRIES,
        );
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Returns two pods, the processes of the node, and a client outside, each with the place where it
    /// asks the service.
    fn clients(&self, family: usize) -> [(&Ns, SocketAddr); 4] {
        let cluster_ip = cluster_ip(family);
        let outside = (world_end(&self.lab, family).0, (self.node().addresses()[family], NODE_PORT).into());
        let [pod, other] = self.clients.each_ref().map(|pod| (&**pod, cluster_ip));
        [pod, other, (self.node(), cluster_ip), outside]
    }

    /// Returns the servers of both families.
    fn servers(&self) -> [Servers; 2] {
        FAMILIES.map(|family| {
            let place = |pod: &Pod| (pod.addresses()[family], POD_PORT);
            let servers = Servers {
                tcp: self.pods.each_ref().map(|pod| listen(pod, place(pod))),
                udp: self.pods.each_ref().map(|pod| udp(pod, place(pod))),
            };
            servers.tcp.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
            servers.udp.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
            servers
        })
    }

    /// Returns what the programs of the node remember of clients.
    fn remembered(&self) -> String {
        self.node().map_dump(maps::AFFINITY).unwrap().to_string()
    }
}

/// The sockets of the backends in one family.
struct Servers {
    tcp: [TcpListener; 3],
    udp: [UdpSocket; 3],
}

impl Servers {
    /// Connects a client, and returns the index of its backend.
    fn connect(&self, (client, to): (&Ns, SocketAddr)) -> usize {
        let _connection = connect(client, to).unwrap();
        first_of(|index| self.tcp[index].accept().ok()).0
    }

    /// Exchanges datagrams with a new socket of a client, and returns the index of its backend.
    fn ask(&self, (client, to): (&Ns, SocketAddr)) -> usize {
        self.ask_with(&socket(client, to), to)
    }

    /// Does the same with a socket. Its owner hears the service.
    fn ask_with(&self, client: &UdpSocket, to: SocketAddr) -> usize {
        client.send_to(b"question", to).unwrap();
        let (index, (_, peer)) = first_of(|index| self.udp[index].recv_from(&mut [0; 64]).ok());
        self.udp[index].send_to(b"answer", peer).unwrap();
        assert_eq!(client.recv_from(&mut [0; 64]).unwrap().1, to);
        index
    }
}

fn cluster_ip(family: usize) -> SocketAddr {
    SocketAddr::new(service(LAST)[family], SERVICE_PORT)
}

fn socket(client: &Ns, to: SocketAddr) -> UdpSocket {
    udp(client, (unspecified(to.ip()), 0))
}

/// Waits until one of the backends succeeds, and returns its index.
fn first_of<T>(mut receive: impl FnMut(usize) -> Option<T>) -> (usize, T) {
    let first = wait_until(|| (0..3).find_map(|index| Some((index, receive(index)?))));
    first.expect("no backend received anything")
}

#[test]
fn clients_keep_their_backends() {
    let sticky = Sticky::new(LONG);
    let servers = sticky.servers();
    let ask_all = || {
        FAMILIES.map(|family| {
            let servers = &servers[family];
            sticky.clients(family).map(|client| (servers.connect(client), servers.ask(client)))
        })
    };
    let first = ask_all();
    for _ in 1..CONNECTIONS {
        assert_eq!(ask_all(), first);
    }
    // The programs need no agent, and a new agent keeps what they remember.
    sticky.node().kill_agent().unwrap();
    assert_eq!(ask_all(), first);
    sticky.node().start_agent().unwrap();
    assert_eq!(ask_all(), first);
}

#[test]
fn affinity_is_switched_off_and_on_again() {
    let sticky = Sticky::new(LONG);
    let servers = sticky.servers();
    let mut without = sticky.object();
    without["spec"]["sessionAffinity"] = "None".into();
    without["spec"].as_object_mut().unwrap().remove("sessionAffinityConfig");
    let each_keeps = |is_kept: bool| {
        for (family, servers) in servers.iter().enumerate() {
            for client in sticky.clients(family) {
                let backends = || (0..CONNECTIONS).map(|_| servers.connect(client));
                let is_one = || backends().collect::<BTreeSet<_>>().len() == 1;
                let as_expected = wait_until(|| (is_one() == is_kept).then_some(()));
                assert!(as_expected.is_some(), "{} to {}, affinity {is_kept}", client.0.name(), client.1);
            }
        }
    };
    each_keeps(true);
    sticky.lab.api_server().unwrap().put(without);
    each_keeps(false);
    sticky.lab.api_server().unwrap().put(sticky.object());
    each_keeps(true);
}

#[test]
fn only_clients_of_a_backend_that_left_choose_another() {
    let sticky = Sticky::new(LONG);
    let servers = sticky.servers();
    for (family, servers) in servers.iter().enumerate() {
        let clients = sticky.clients(family);
        let ask_all = || clients.map(|client| [servers.connect(client), servers.ask(client)]);
        sticky.serve(&[0, 1, 2]);
        let before = ask_all();
        // The backend of processes leaves, and in the other family that of the client outside.
        let gone = before[2 + family][0];
        let rest: Vec<_> = (0..3).filter(|index| *index != gone).collect();
        sticky.serve(&rest);
        let after = wait_until(|| Some(ask_all()).filter(|all| !all.as_flattened().contains(&gone)));
        let after = after.expect("nobody goes to the backend that left");
        for (before, after) in before.as_flattened().iter().zip(after.as_flattened()) {
            assert!(before == after || *before == gone, "{before} {after} {gone}");
        }
        for _ in 1..CONNECTIONS {
            assert_eq!(ask_all(), after);
        }
        sticky.serve(&[0, 1, 2]);
        assert_eq!(ask_all(), after, "the backend is back");
    }
}

/// Waits longer than the shortest time of session affinity, until something has happened.
fn wait_past_the_time<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    wait_until(|| {
        std::thread::sleep(Duration::from_millis(1100));
        ask()
    })
}

#[test]
fn clients_choose_again_when_their_time_is_over() {
    let sticky = Sticky::new(1);
    let servers = sticky.servers();
    let mut left = Vec::new();
    for (family, servers) in servers.iter().enumerate() {
        left.extend(sticky.clients(family).map(|client| (servers, client, servers.connect(client))));
    }
    let changed = wait_past_the_time(|| {
        left.retain(|(servers, client, first)| servers.connect(*client) == *first);
        left.is_empty().then_some(())
    });
    assert!(changed.is_some(), "{} clients keep their backends", left.len());
}

#[test]
fn a_udp_socket_of_a_process_keeps_its_backend_beyond_the_time() {
    let sticky = Sticky::new(1);
    let (node, servers) = (sticky.node(), sticky.servers());
    for (family, servers) in servers.iter().enumerate() {
        sticky.serve(&[0, 1, 2]);
        let to = cluster_ip(family);
        let [client, connected] = [(); 2].map(|()| socket(node, to));
        connected.connect(to).unwrap();
        let first = servers.ask_with(&client, to);
        // If the time was over in between, the two have different backends.
        let of_connected = servers.ask_with(&connected, to);
        let moved = || Some(servers.ask((node, to))).filter(|index| ![first, of_connected].contains(index));
        assert!(wait_past_the_time(moved).is_some(), "new sockets choose again");
        let remembered = sticky.remembered();
        assert_eq!(servers.ask_with(&client, to), first);
        assert_eq!(servers.ask_with(&connected, to), of_connected, "only this backend can answer");
        assert_eq!(sticky.remembered(), remembered, "a later datagram begins no flow");
        let rest: Vec<_> = (0..3).filter(|index| *index != first).collect();
        sticky.serve(&rest);
        assert!(wait_until(|| (servers.ask_with(&client, to) != first).then_some(())).is_some());
        drop((client, connected));
        assert!(forgets_all(node));
    }
}
