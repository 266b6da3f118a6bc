//! Podwire beside kube-proxy, with the rules that kube-proxy wrote for a running cluster in its two
//! modes. The nodes, pods and services are that cluster's. Where kube-proxy translates a flow, both
//! directions pass the host's stack.

mod backends;
mod cluster_ip;
mod connections;
mod icmp_errors;
mod node_port;
mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;
use xtask::lab::{Builder, KubeProxy, Lab, Mode, Node, Ns, Pod, connect};

use backends::Backends;

/// Three backends: `WEB`. For TCP and UDP.
const WEB_TCP: SocketAddr = v4([10, 96, 66, 215], 80);
const WEB_UDP: SocketAddr = v4([10, 96, 66, 215], 81);
const WEB: &[&str] = &["web-1", "web-2", "web-3"];
/// The same backends. Each client stays with one.
const WEB_STICKY: SocketAddr = v4([10, 96, 100, 133], 80);
/// The same backends, by an external IP.
const WEB_EXTERNAL: SocketAddr = v4([198, 51, 100, 7], 80);
/// One backend, on the second node.
const SOLO: SocketAddr = v4([10, 96, 93, 248], 80);
/// No backend.
const NOBODY: SocketAddr = v4([10, 96, 59, 99], 80);
/// The cluster's DNS, on the first node. For TCP and UDP.
const DNS: SocketAddr = v4([10, 96, 0, 10], 53);
/// The API server: a process of the first node.
const KUBERNETES: SocketAddr = v4([10, 96, 0, 1], 443);

/// Node (from 0), name and last byte of the address.
const PODS: [(usize, &str, u8); 7] = [
    (0, "dns", 2),
    (0, "web-1", 3),
    (0, "client-1", 4),
    (1, "web-2", 2),
    (1, "web-3", 3),
    (1, "solo", 4),
    (1, "client-2", 5),
];

/// The address of a node's first device, which comes before the uplink.
const DOCKER: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));

const fn v4(address: [u8; 4], port: u16) -> SocketAddr {
    let [a, b, c, d] = address;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
}

/// The running cluster for which kube-proxy wrote its rules.
///
/// Its nodes have two devices with addresses besides the uplink: `docker0`, and a second uplink to
/// the neighbour.
struct Cluster {
    pods: BTreeMap<&'static str, Pod>,
    /// A host that shares a link with each node, `eth1` with 10.201.N.1. It reaches the node's own
    /// address by that link.
    neighbour: Ns,
    /// The rules of every node, before the agent and the first pod came.
    rules: Vec<Rules>,
    proxy: KubeProxy,
    mode: Mode,
    lab: Lab,
}

impl Cluster {
    /// Runs a test in both modes of Podwire with both modes of kube-proxy. Afterwards every node
    /// must have the same rules as before.
    fn each(test: impl Fn(&Self)) {
        Self::each_of(&Lab::builder(), test);
    }

    fn each_of(builder: &Builder, test: impl Fn(&Self)) {
        for mode in [Mode::Vxlan, Mode::Direct] {
            for proxy in [KubeProxy::Nftables, KubeProxy::Iptables] {
                // Cargo prints this when a test fails.
                println!("{mode:?}, kube-proxy with {proxy:?}");
                let cluster = Self::new(builder.clone().mode(mode), mode, proxy);
                test(&cluster);
                let rules: Vec<Rules> = cluster.lab.nodes().iter().map(Rules::of).collect();
                assert_eq!(rules, cluster.rules, "the node does not have the rules that it had before");
            }
        }
    }

    fn new(builder: Builder, mode: Mode, proxy: KubeProxy) -> Self {
        let lab = builder.agents(false).docker(true).build().unwrap();
        let neighbour = lab.add_namespace("neighbour").unwrap();
        for (node, number) in lab.nodes().iter().zip(1..) {
            proxy.write_rules(node).unwrap();
            connect(&neighbour, node.name(), node, "eth1").unwrap();
            node.ip(&format!(
                "address add 10.201.{number}.1/24 dev eth1\nroute add default via 10.201.{number}.66 metric 200\n"
            ))
            .unwrap();
            neighbour
                .ip(&format!(
                    "address add 10.201.{number}.66/24 dev node{number}\nroute add {} via 10.201.{number}.1\n",
                    node.address()
                ))
                .unwrap();
        }
        let rules = lab.nodes().iter().map(Rules::of).collect();
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let pods = PODS.iter().map(|(node, name, byte)| (*name, add_pod(lab.node(*node), name, *byte)));
        Self { pods: pods.collect(), neighbour, rules, proxy, mode, lab }
    }

    fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// Starts the backends of the services.
    fn serve(&self) -> Backends {
        let mut backends = Backends::default();
        for name in WEB {
            backends.tcp(self.pod(name), name, 8080);
            backends.udp(self.pod(name), name, 8081);
        }
        backends.tcp(self.pod("solo"), "solo", 8080);
        backends.tcp(self.pod("dns"), "dns", 53);
        backends.udp(self.pod("dns"), "dns", 53);
        backends.tcp(self.lab.node(0), "node1", 6443);
        backends
    }

    /// Returns the node (from 0) of a backend.
    fn node_of(&self, backend: &str) -> usize {
        let pod = PODS.iter().find(|(_, name, _)| *name == backend);
        let node = || self.lab.nodes().iter().position(|node| node.name() == backend);
        pod.map(|(node, ..)| *node).or_else(node).unwrap()
    }

    /// Returns the address of a node's (from 0) second uplink.
    fn second_address(node: usize) -> IpAddr {
        [10, 201, node as u8 + 1, 1].into()
    }
}

fn add_pod(node: &Node, name: &str, byte: u8) -> Pod {
    let IpAddr::V4(gateway) = node.gateway() else { panic!("not IPv4") };
    let [a, b, c, _] = gateway.octets();
    node.add_pod_with(name, &json!({ "ips": [format!("{a}.{b}.{c}.{byte}/24")] })).unwrap()
}

/// All rules of a node, without their counts and the clients that they have seen.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    nft: Vec<String>,
    iptables: Vec<String>,
}

impl Rules {
    fn of(node: &Node) -> Self {
        let nft = node.exec(&["nft", "--stateless", "list", "ruleset"]).unwrap();
        let iptables = node.exec(&["iptables-save"]).unwrap();
        let mut in_dynamic_set = false;
        let is_rule = |line: &&str| {
            in_dynamic_set = match line.trim() {
                "flags dynamic,timeout" => true,
                "}" => false,
                _ => in_dynamic_set,
            };
            // Leave out the clients of a service with affinity.
            !(in_dynamic_set && (line.contains("elements = {") || line.contains("expires")))
        };
        Self {
            nft: nft.lines().filter(is_rule).map(str::to_owned).collect(),
            iptables: iptables
                .lines()
                .filter(|line| !line.starts_with('#'))
                // A line looks like `:INPUT ACCEPT [12:3456]`.
                .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
                .collect(),
        }
    }
}
