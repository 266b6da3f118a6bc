//! hostPorts: whoever reaches the node reaches the pod, past the host's own rules, and the pod sees who it is.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use podwire_common::reason::Path::{self, FromStack, Hairpin, HostPortIn, HostPortOut, SnatOut};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Exchange, Route};
use xtask::lab::{Lab, Mode, Node, Ns, Pod};

use crate::check::Counted;
use crate::service::iptables;

/// Where the pod listens.
const PORT: u16 = 8080;
/// On every address of the node.
const ANYWHERE: u16 = 9088;
/// On the node's InternalIP.
const HERE: u16 = 9089;
/// A second way to the same pod.
const SECOND: u16 = 9090;
const STREAM: u64 = 1 << 20;
const DATAGRAM: usize = 1000;
/// Three fragments.
const LARGE_DATAGRAM: usize = 4000;

#[test]
fn everybody_reaches_a_host_port_in_vxlan_mode() {
    everybody_reaches_a_host_port(Mode::Vxlan);
}

#[test]
fn everybody_reaches_a_host_port_in_direct_routing() {
    everybody_reaches_a_host_port(Mode::Direct);
}

fn everybody_reaches_a_host_port(mode: Mode) {
    let places = Places::new(mode);
    let mut failures = String::new();
    for client in places.clients() {
        for host_port in [ANYWHERE, HERE] {
            let route = Route::translated(SocketAddr::new(places.node().address(), host_port), PORT);
            let pod = &places.pod;
            let udp = |size| traffic::udp_exchange_on(client.ns, pod, route, size);
            let mut protocol = |protocol: &str, exchange: &dyn Fn() -> Result<Exchange>| {
                if let Err(error) = client.check(&places.lab, exchange) {
                    writeln!(failures, "{} to {host_port}, {protocol}: {error:#}", client.name).unwrap();
                }
            };
            protocol("TCP", &|| traffic::tcp_exchange_on(client.ns, pod, route, STREAM));
            protocol("UDP", &|| udp(DATAGRAM));
            protocol("UDP in fragments", &|| udp(LARGE_DATAGRAM));
        }
    }
    assert!(failures.is_empty(), "{mode:?}\n{failures}");
}

/// A pod with hostPorts, on a node whose host forwards nothing, and who reaches it.
struct Places {
    pod: Pod,
    near: Pod,
    far: Pod,
    lab: Lab,
}

impl Places {
    fn new(mode: Mode) -> Self {
        let lab = Lab::builder().mode(mode).build().unwrap();
        for node in lab.nodes() {
            iptables(node, "-P FORWARD DROP");
        }
        let address = lab.node(0).address();
        let wanted = mappings(&[
            (ANYWHERE, PORT, "tcp", None),
            (ANYWHERE, PORT, "udp", None),
            (HERE, PORT, "tcp", Some(address)),
            (HERE, PORT, "udp", Some(address)),
            (SECOND, PORT, "udp", None),
        ]);
        Self {
            pod: lab.node(0).add_pod_with("pod", &wanted).unwrap(),
            near: lab.node(0).add_pod("near").unwrap(),
            far: lab.node(1).add_pod("far").unwrap(),
            lab,
        }
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    fn clients(&self) -> [Client<'_>; 5] {
        let (lab, other) = (&self.lab, self.lab.node(1));
        [
            Client::new("the world", lab.world(), lab.world_address()),
            Client::new("another node", other, other.address()),
            Client::new("a pod of the node", &self.near, self.near.address()),
            Client::new("a pod of another node", &self.far, self.far.address()),
            Client {
                takes: &[Hairpin],
                avoids: &[HostPortIn, HostPortOut, FromStack, SnatOut],
                ..Client::new("the pod itself", &self.pod, self.node().gateway())
            },
        ]
    }
}

/// Somebody, as the pod behind the hostPort must see them.
struct Client<'a> {
    name: &'a str,
    ns: &'a Ns,
    seen_as: IpAddr,
    takes: &'a [Path],
    avoids: &'a [Path],
}

impl<'a> Client<'a> {
    fn new(name: &'a str, ns: &'a Ns, seen_as: IpAddr) -> Self {
        Self { name, ns, seen_as, takes: &[HostPortIn, HostPortOut], avoids: &[Hairpin, FromStack, SnatOut] }
    }

    /// The exchange succeeds (its answers come from where it sent to), the pod sees this client, and the packets took their way.
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

/// A `runtimeConfig` with hostPorts: port of the node, port of the pod, protocol, hostIP.
fn mappings(wanted: &[(u16, u16, &str, Option<IpAddr>)]) -> Value {
    let entries = wanted.iter().map(|(host, container, protocol, address)| {
        let address = address.map(|address| address.to_string()).unwrap_or_default();
        // As containerd spells them.
        json!({ "HostPort": host, "ContainerPort": container, "Protocol": protocol, "HostIP": address })
    });
    json!({ "portMappings": entries.collect::<Value>() })
}
