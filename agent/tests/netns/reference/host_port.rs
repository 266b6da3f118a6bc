//! Clients of a hostPort.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};

use super::cases::Case;
use super::cluster::{ANYWHERE, CLOSED, Cluster, HERE, PORT, Place};
use super::talk::{self, Protocol};
use super::{Fault, Outcome, demand};
use crate::host_processes::LOOPBACKS;
use crate::icmp_errors::path_mtu;
use crate::ip_tables;

/// The port that Kubernetes' conformance tests use.
const CONFORMANCE: u16 = 54323;
/// The hostPort of pods that come and go.
const REPLACED: u16 = 9091;
/// A datagram of three fragments.
const LARGE_DATAGRAM: usize = 4000;
/// More bytes than all buffers on the way hold, so that most of them cross the smaller path.
const TRANSFER: usize = 16 << 20;
/// The underlay's routes to the world, of each family.
const ROUTES_TO_THE_WORLD: [&str; 2] = [
    "route change 198.51.100.0/24 dev world src 198.51.100.1 proto kernel scope link",
    "route replace 2001:db8::/64 dev world proto kernel metric 256",
];

/// A client, and the address of the node that it uses.
#[derive(Clone, Copy)]
struct Client {
    name: &'static str,
    place: fn(&Cluster) -> &Place,
    address: fn(&Cluster) -> IpAddr,
}

const WORLD: Client = Client { name: "the world", place: |cluster| &cluster.world, address: node };
const OTHER: Client = Client { name: "another node", place: |cluster| &cluster.other, address: node };
const NODE: Client =
    Client { name: "the node, by its address", place: |cluster| &cluster.node, address: node };
const NODE_BY_LOOPBACK: Client =
    Client { name: "the node, by its loopback address", place: |cluster| &cluster.node, address: loopback };
const NEAR: Client = Client { name: "a pod of the node", place: |cluster| &cluster.near, address: node };
const FAR: Client = Client { name: "a pod of another node", place: |cluster| &cluster.far, address: node };
const ITSELF: Client = Client { name: "the pod itself", place: |cluster| &cluster.pod, address: node };

fn node(cluster: &Cluster) -> IpAddr {
    cluster.node.address
}

fn loopback(cluster: &Cluster) -> IpAddr {
    LOOPBACKS[cluster.family]
}

impl Client {
    /// Asks the pod, and returns the source that the pod saw.
    fn ask(self, cluster: &Cluster, protocol: Protocol, port: u16) -> Outcome<IpAddr> {
        let to = SocketAddr::new((self.address)(cluster), port);
        talk::ask(cluster, protocol, &(self.place)(cluster).ns, &cluster.pod, to)
    }
}

pub fn reached() -> Vec<Case> {
    each(
        [WORLD, OTHER, NODE, NODE_BY_LOOPBACK, NEAR, FAR, ITSELF],
        "hostPort from",
        |client, protocol, cluster| client.ask(cluster, protocol, ANYWHERE).map(|_| ()),
    )
}

pub fn real_clients() -> Vec<Case> {
    each([WORLD, OTHER, NEAR, FAR], "the pod sees the address of", |client, protocol, cluster| {
        let seen = client.ask(cluster, protocol, ANYWHERE)?;
        demand((client.place)(cluster).has(seen)?, || format!("it sees {seen}"))?;
        Ok(())
    })
}

pub fn host_ips() -> Vec<Case> {
    let mut cases = each([WORLD, FAR], "hostPort with hostIP from", |client, protocol, cluster| {
        client.ask(cluster, protocol, HERE).map(|_| ())
    });
    cases.push(Case::new("hostPort with hostIP is closed at the loopback address, TCP", |cluster| {
        match NODE_BY_LOOPBACK.ask(cluster, Protocol::Tcp, HERE) {
            Ok(_) => Err(Fault::Wrong("it is open".to_owned())),
            Err(Fault::Wrong(_)) => Ok(()),
            Err(broken) => Err(broken),
        }
    }));
    cases
}

pub fn shared() -> Vec<Case> {
    vec![
        Case::new("one hostPort, three pods, by hostIP and protocol (Kubernetes conformance)", conformance),
        Case::new("a second pod that asks for a taken hostPort is refused", |cluster| {
            let answer = cluster.try_pod("second", &[(ANYWHERE, PORT, "tcp", None)])?;
            demand(!answer.success, || "it is granted".to_owned())?;
            Ok(())
        }),
    ]
}

/// Asks from a process of the node, like the client of the conformance test.
fn conformance(cluster: &Cluster) -> Outcome {
    let (address, loopback) = (cluster.node.address, loopback(cluster));
    let add =
        |name, protocol, host_ip| cluster.add_pod(name, &[(CONFORMANCE, PORT, protocol, Some(host_ip))]);
    let pods = [add("local", "tcp", loopback)?, add("tcp", "tcp", address)?, add("udp", "udp", address)?];
    let outcome = (|| {
        let [local, tcp, udp] = &pods;
        // The equivalent of `curl --interface` with the node's address.
        let (from, to) = (SocketAddr::new(address, 0), SocketAddr::new(loopback, CONFORMANCE));
        let client = talk::connect(cluster, &cluster.node.ns, from, to)?;
        talk::accept(cluster, &client, local)?;
        let to = SocketAddr::new(address, CONFORMANCE);
        talk::ask(cluster, Protocol::Tcp, &cluster.node.ns, tcp, to)?;
        talk::ask(cluster, Protocol::Udp, &cluster.node.ns, udp, to)?;
        Ok(())
    })();
    for pod in pods {
        pod.delete()?;
    }
    outcome
}

pub fn policy() -> Vec<Case> {
    each([WORLD, NEAR], "with the FORWARD policy DROP, hostPort from", |client, protocol, cluster| {
        ip_tables(cluster.lab.node(0), cluster.family, "-P FORWARD DROP");
        let outcome = client.ask(cluster, protocol, ANYWHERE);
        ip_tables(cluster.lab.node(0), cluster.family, "-P FORWARD ACCEPT");
        outcome.map(|_| ())
    })
}

pub fn replaced() -> Vec<Case> {
    vec![
        Case::new("a UDP client of one port finds the next pod", |cluster| next_pod(cluster, false)),
        Case::new("a UDP client that went on asking while there was none finds the next pod", |cluster| {
            next_pod(cluster, true)
        }),
    ]
}

fn next_pod(cluster: &Cluster, goes_on: bool) -> Outcome {
    let port = cluster.unused_port();
    let to = SocketAddr::new(cluster.node.address, REPLACED);
    let clients = [WORLD, OTHER, NEAR, FAR];
    let sockets = clients.map(|client| talk::udp(cluster, &(client.place)(cluster).ns, port));
    let sockets = sockets.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for name in ["one", "another"] {
        // The namespaces of deleted pods last as long as the lab, so each pod has a name of its
        // own.
        let pod = cluster.add_pod(&format!("{name}-{port}"), &[(REPLACED, PORT, "udp", None)])?;
        let mut answers = clients.iter().zip(&sockets).map(|(client, socket)| {
            talk::ask_by(socket, &pod, to, 100)
                .map_err(|fault| fault.of(&format!("{} ({name} pod)", client.name)))
        });
        let outcome = answers.try_for_each(|answer| answer.map(|_| ()));
        pod.delete()?;
        outcome?;
        if goes_on {
            for socket in &sockets {
                socket.send_to(b"anybody?", to)?;
            }
        }
    }
    Ok(())
}

pub fn closed() -> Vec<Case> {
    each(
        [WORLD, NODE, NEAR, FAR],
        "a closed port behind a hostPort is told to",
        |client, protocol, cluster| {
            let (from, to) = ((client.place)(cluster), SocketAddr::new((client.address)(cluster), CLOSED));
            let told = match protocol {
                Protocol::Tcp => talk::connect(cluster, &from.ns, talk::any(to), to).map(|_| ()),
                Protocol::Udp => talk::ask_nobody(cluster, &from.ns, to),
            };
            match told {
                Err(Fault::Wrong(reason)) if reason.ends_with(talk::REFUSED) => Ok(()),
                Ok(()) => Err(Fault::Wrong("somebody answers".to_owned())),
                fault => fault,
            }
        },
    )
}

pub fn large() -> Vec<Case> {
    let ask = |client: Client| {
        move |cluster: &Cluster| {
            let place = (client.place)(cluster);
            let socket = talk::udp(cluster, &place.ns, 0)?;
            let to = SocketAddr::new(cluster.node.address, ANYWHERE);
            if to.is_ipv6() {
                // Only the sender fragments. It loses a first datagram that is larger than the path
                // takes, and has learnt the path's MTU when a later one is answered.
                talk::send(&socket, to, LARGE_DATAGRAM)?;
                talk::ask_by(&socket, &cluster.pod, to, 100)?;
            }
            talk::ask_by(&socket, &cluster.pod, to, LARGE_DATAGRAM).map(|_| ())
        }
    };
    let case = |client: Client| {
        Case::new(format!("fragments (UDP, 4000 bytes) to and from a hostPort, {}", client.name), ask(client))
    };
    [WORLD, OTHER, NEAR, FAR].map(case).into()
}

pub fn smaller_path() -> Vec<Case> {
    vec![Case::new("the path to a hostPort's client shrinks to 1280, the transfer goes on", |cluster| {
        let to = SocketAddr::new(cluster.node.address, ANYWHERE);
        let mut client = talk::connect(cluster, &cluster.world.ns, talk::any(to), to)?;
        let (mut server, _) = talk::accept(cluster, &client, &cluster.pod)?;
        std::thread::scope(|scope| {
            // This fails when the client gives up, after the network's patience.
            scope.spawn(move || server.write_all(&vec![7; TRANSFER]));
            let mut buffer = vec![0; TRANSFER];
            let (first, rest) = buffer.split_at_mut(1 << 20);
            demand(client.read_exact(first).is_ok(), || "the transfer does not begin".to_owned())?;
            // Lower the MTU of the route, not of the link: the client would know the link's MTU.
            let route = ROUTES_TO_THE_WORLD[cluster.family];
            cluster.lab.underlay().ip(&format!("{route} mtu lock 1280\n"))?;
            let outcome = client.read_exact(rest);
            cluster.lab.underlay().ip(&format!("{route}\n"))?;
            demand(outcome.is_ok(), || "the transfer stands still".to_owned())?;
            let known = path_mtu(&cluster.pod.ns, cluster.world.address);
            demand(known == Some(1280), || "the pod was not told".to_owned())?;
            Ok(())
        })
    })]
}

/// Returns a case for each client and protocol.
fn each<const CLIENTS: usize>(
    clients: [Client; CLIENTS],
    what: &str,
    run: fn(Client, Protocol, &Cluster) -> Outcome,
) -> Vec<Case> {
    let case = |client: Client, protocol: Protocol| {
        let name = format!("{what} {}, {}", client.name, protocol.name());
        Case::new(name, move |cluster: &Cluster| run(client, protocol, cluster))
    };
    clients.into_iter().flat_map(|client| Protocol::BOTH.map(|protocol| case(client, protocol))).collect()
}

impl Fault {
    /// Adds the name of the client to the reason.
    fn of(self, whose: &str) -> Self {
        match self {
            Fault::Wrong(reason) => Fault::Wrong(format!("{whose}: {reason}")),
            broken => broken,
        }
    }
}
