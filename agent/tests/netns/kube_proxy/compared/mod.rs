//! The services of a running cluster, once by the programs and once by the rules that kube-proxy
//! wrote there: clients ask every address of every service on both sides.

mod frontends;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use xtask::lab::{KubeProxy, Lab, Ns, Pod};

use frontends::{Frontend, Kind, frontends, lists};

use super::table::Protocol;
use super::{DUAL_STACK, add_pod};
use crate::backends::Backends;
use crate::commands::rows;
use crate::neighbour::{add_neighbour, lead_to_first_node};
use crate::service_list::{SERVED, has};
use crate::sockets::unspecified;
use crate::{ANY, FAMILIES, keep_families_apart};

/// The networks of ClusterIPs.
const NETWORKS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The networks of all addresses of services.
const ADDRESSES: [&str; 4] = ["10.96.0.0/16", "fd00:10:96::/112", "203.0.113.0/24", "2001:db8:200::/64"];
/// How often a client asks at least, and at most while a backend that answers on the other side is
/// missing. With a choice among two, one cell in 10^29 misses a backend.
const AT_LEAST: usize = 8;
const AT_MOST: usize = 100;
/// How long a client waits. A refusal may come a second late: the kernel only notes an error that
/// comes while it holds the socket's lock, until it sends again.
const PATIENCE: Duration = Duration::from_secs(4);
/// Clients that ask at the same time: fewer than the connections that wait for a server (128).
const AT_ONCE: usize = 100;

#[derive(Clone, Copy, Debug)]
enum Client {
    /// Of the first node.
    Pod,
    /// Of the second node.
    OtherPod,
    /// A pod of the first node that is a backend of most services.
    Backend,
    /// Of the first node.
    Process,
    /// Of the second node.
    OtherProcess,
    /// It reaches external addresses by the first node.
    World,
    /// On a second link of both nodes. It reaches external addresses by the first node.
    Neighbour,
}

const CLIENTS: [Client; 7] = [
    Client::Pod,
    Client::OtherPod,
    Client::Backend,
    Client::Process,
    Client::OtherProcess,
    Client::World,
    Client::Neighbour,
];

/// A difference between kube-proxy and the programs that is meant.
struct Difference {
    reason: &'static str,
    modes: &'static [KubeProxy],
    includes: fn(&(Client, Frontend)) -> bool,
}

const DIFFERENCES: [Difference; 3] = [
    Difference {
        reason: "the programs do not serve ClusterIPs to clients outside",
        modes: &[KubeProxy::Nftables, KubeProxy::Iptables],
        includes: |(client, frontend)| client.is_outside() && frontend.kind.is_of_cluster(),
    },
    Difference {
        reason: "in this mode, kube-proxy serves NodePorts at the InternalIP only",
        modes: &[KubeProxy::Nftables],
        includes: |(_, frontend)| frontend.kind == Kind::NodePortBeside,
    },
    Difference {
        reason: "in this mode, kube-proxy lets packets to unknown ports of a ClusterIP leave the node",
        modes: &[KubeProxy::Iptables],
        includes: |(_, frontend)| frontend.kind == Kind::UnknownPort,
    },
];

/// What a client meets at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// These backends answer.
    Backends(BTreeSet<String>),
    /// One of several backends answers each time.
    OneOfThem,
    Refused,
    /// Nobody answers.
    Dropped,
}

impl Client {
    fn is_outside(self) -> bool {
        matches!(self, Self::World | Self::Neighbour)
    }
}

impl Outcome {
    fn lacks(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Backends(own), Self::Backends(others)) => !own.is_superset(others),
            _ => false,
        }
    }
}

#[test]
fn services_of_a_real_cluster_are_reached_as_by_kube_proxy() {
    let ours = Side::new(None);
    let asked: Vec<_> = CLIENTS
        .into_iter()
        .flat_map(|client| frontends(&ours.lab).into_iter().map(move |frontend| (client, frontend)))
        .collect();
    let nobody = vec![Outcome::Dropped; asked.len()];
    let mut failures = String::new();
    let first = ours.ask_all(&asked, &nobody);
    for mode in [KubeProxy::Nftables, KubeProxy::Iptables] {
        let theirs = Side::new(Some(mode));
        let mut by_rules = theirs.ask_all(&asked, &first);
        // A backend that kube-proxy chose may be one that the programs have not chosen yet.
        let lacking = |index: &usize| first[*index].lacks(&by_rules[*index]);
        let mut by_programs = first.clone();
        for index in (0..asked.len()).filter(lacking) {
            by_programs[index] = ours.ask(&asked[index], &by_rules[index]);
        }
        // With many clients at once, a kernel may lose packets. A real difference is there again when
        // one client asks alone.
        let is_meant = |asked| {
            let of_mode = DIFFERENCES.iter().filter(|difference| difference.modes.contains(&mode));
            of_mode.into_iter().any(|difference| (difference.includes)(asked))
        };
        for index in 0..asked.len() {
            if by_programs[index] != by_rules[index] && !is_meant(&asked[index]) {
                by_programs[index] = ours.ask(&asked[index], &by_rules[index]);
                by_rules[index] = theirs.ask(&asked[index], &by_programs[index]);
            }
        }
        explain(mode, &asked, &by_programs, &by_rules, &mut failures);
    }
    assert!(failures.is_empty(), "\n{failures}");
}

/// Writes the differences that are not meant, and those that no longer exist.
fn explain(
    mode: KubeProxy,
    asked: &[(Client, Frontend)],
    by_programs: &[Outcome],
    by_rules: &[Outcome],
    failures: &mut String,
) {
    let mut missing: Vec<_> =
        DIFFERENCES.iter().filter(|difference| difference.modes.contains(&mode)).collect();
    let meant = missing.clone();
    for ((asked, programs), rules) in asked.iter().zip(by_programs).zip(by_rules) {
        if programs == rules {
            continue;
        }
        match meant.iter().find(|difference| (difference.includes)(asked)) {
            Some(found) => missing.retain(|difference| difference.reason != found.reason),
            None => writeln!(failures, "{mode:?}, {asked:?}: {programs:?}, by the rules {rules:?}").unwrap(),
        }
    }
    for difference in missing {
        writeln!(failures, "{mode:?}, no longer so: {}", difference.reason).unwrap();
    }
}

/// Two nodes with the pods of the cluster, whose services one of the two engines serves.
struct Side {
    pods: BTreeMap<&'static str, Pod>,
    neighbour: Ns,
    _backends: [Backends; 2],
    lab: Lab,
}

impl Side {
    /// Returns the side with kube-proxy's rules, or that of the programs.
    fn new(proxy: Option<KubeProxy>) -> Self {
        let mut builder = Lab::builder().agents(false);
        if proxy.is_none() {
            builder = builder.agent_arguments(&["--services", "on", "--service-networks", NETWORKS]);
        }
        let lab = builder.build().unwrap();
        let neighbour = add_neighbour(&lab).unwrap();
        for node in lab.nodes() {
            if let Some(proxy) = proxy {
                proxy.write_dual_stack_rules(node).unwrap();
            }
            // kube-proxy refuses by errors, and the test asks for more than a kernel sends otherwise.
            node.sysctl("net/ipv4/icmp_ratemask", "0").unwrap();
            node.sysctl("net/ipv6/icmp/ratelimit", "0").unwrap();
            node.start_agent().unwrap();
        }
        let pods: BTreeMap<_, _> = DUAL_STACK
            .pods
            .iter()
            .map(|(node, name, last)| (*name, add_pod(lab.node(*node), name, *last)))
            .collect();
        lead_to_first_node(&lab, &neighbour, &ADDRESSES);
        let backends = serve(&lab, &pods);
        let side = Self { pods, neighbour, _backends: backends, lab };
        if proxy.is_none() {
            side.put_lists();
        }
        side
    }

    fn put_lists(&self) {
        let api = self.lab.api_server().unwrap();
        lists().into_iter().for_each(|object| api.put(object));
        for node in self.lab.nodes() {
            has(node, SERVED);
            // The agent answers after it has written all of the change.
            rows(node, &["services"]);
        }
    }

    fn client(&self, client: Client) -> &Ns {
        match client {
            Client::Pod => &self.pods["client-1"],
            Client::OtherPod => &self.pods["client-2"],
            Client::Backend => &self.pods["web-1"],
            Client::Process => self.lab.node(0),
            Client::OtherProcess => self.lab.node(1),
            Client::World => self.lab.world(),
            Client::Neighbour => &self.neighbour,
        }
    }

    /// Lets clients ask at the same time, each as [`Self::ask`] does.
    fn ask_all(&self, asked: &[(Client, Frontend)], other: &[Outcome]) -> Vec<Outcome> {
        let todo = Mutex::new(0..asked.len());
        let done = Mutex::new(BTreeMap::new());
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let Some(index) = todo.lock().unwrap().next() else { break };
                        let outcome = self.ask(&asked[index], &other[index]);
                        done.lock().unwrap().insert(index, outcome);
                    }
                });
            }
        });
        done.into_inner().unwrap().into_values().collect()
    }

    /// Asks until all backends that the other side has have answered.
    fn ask(&self, (client, frontend): &(Client, Frontend), other: &Outcome) -> Outcome {
        let from = self.client(*client);
        let mut answered = BTreeSet::new();
        for attempt in 1..=AT_MOST {
            let answer = match frontend.protocol {
                Protocol::Tcp => ask_by_tcp(from, frontend.at),
                Protocol::Udp => ask_by_udp(from, frontend.at),
            };
            match answer {
                Ok(backend) => answered.insert(backend),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Outcome::Refused,
                Err(_) => return Outcome::Dropped,
            };
            if attempt >= AT_LEAST && !Outcome::Backends(answered.clone()).lacks(other) {
                break;
            }
        }
        if frontend.service == "web-sticky" && answered.len() == 1 {
            return Outcome::OneOfThem;
        }
        Outcome::Backends(answered)
    }
}

fn serve(lab: &Lab, pods: &BTreeMap<&'static str, Pod>) -> [Backends; 2] {
    let namespaces: Vec<&Ns> = pods.values().map(|pod| &**pod).chain([&**lab.node(0)]).collect();
    keep_families_apart(&namespaces);
    FAMILIES.map(|family| {
        let mut backends = Backends::at(ANY[family]);
        for name in ["web-1", "web-2", "solo"] {
            backends.tcp(&pods[name], name, 8080);
            backends.udp(&pods[name], name, 8081);
        }
        for name in ["dns", "dns-2"] {
            backends.tcp(&pods[name], name, 53);
            backends.udp(&pods[name], name, 53);
        }
        backends.tcp(lab.node(0), "api-server", 6443);
        backends
    })
}

fn ask_by_tcp(from: &Ns, to: SocketAddr) -> io::Result<String> {
    let stream = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = String::new();
    BufReader::new(stream).read_line(&mut greeting)?;
    name_in(&greeting)
}

fn ask_by_udp(from: &Ns, to: SocketAddr) -> io::Result<String> {
    let socket = from.enter(|| UdpSocket::bind((unspecified(to.ip()), 0))).unwrap()?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE / 4))?;
    let mut answer = [0; 200];
    let mut last = None;
    for _ in 0..4 {
        match socket.send(&[0; 200]).and_then(|_| socket.recv(&mut answer)) {
            Ok(_) => return name_in(&String::from_utf8_lossy(&answer)),
            // A socket hears of a refusal by its node's own rules when it sends again.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::PermissionDenied) => {
                last = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap())
}

fn name_in(greeting: &str) -> io::Result<String> {
    let name = greeting.split_once(' ').map(|(name, _)| name.to_owned());
    name.ok_or_else(|| ErrorKind::UnexpectedEof.into())
}
