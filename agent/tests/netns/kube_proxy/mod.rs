//! Podwire beside kube-proxy, with the rules that kube-proxy wrote for running clusters in its two
//! modes. The nodes, pods and services are those of the clusters. Where kube-proxy translates a flow,
//! both directions pass the host's stack.

mod cluster_ip;
mod compared;
mod connections;
mod first_family;
mod icmp_errors;
mod node_port;
mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;
use xtask::lab::{Builder, Families, KubeProxy, Lab, Mode, Node, Ns, Pod};

use crate::backends::Backends;
use crate::neighbour::{DISTANT, OWN, add_neighbour, beside};
use crate::sockets::unspecified;

/// A running cluster for which kube-proxy wrote rules.
struct Site {
    families: Families,
    /// Node (from 0), name and last number of the addresses.
    pods: &'static [(usize, &'static str, u8)],
    /// The backends of the services that have more than one.
    web: &'static [&'static str],
    /// The backends on each node of the service that is reached by local NodePorts.
    local: [&'static [&'static str]; 2],
    /// Of each family, in the order of `families`.
    services: &'static [Services],
}

/// Addresses of services.
#[derive(Clone, Copy)]
struct Services {
    /// The backends of [`Site::web`]. For TCP port 80 and UDP port 81.
    web: IpAddr,
    /// The same backends. Each client stays with one.
    web_sticky: IpAddr,
    /// The same backends, by an external IP.
    web_external: IpAddr,
    /// One backend, on the second node.
    solo: IpAddr,
    /// No backend.
    nobody: IpAddr,
    /// The cluster's DNS, for TCP and UDP, and its backends.
    dns: Option<(IpAddr, &'static [&'static str])>,
    /// The API server: a process of the first node.
    kubernetes: Option<IpAddr>,
}

/// The cluster with both families of `testdata/dual-stack`. DNS and API server have IPv4 alone.
const DUAL_STACK: Site = Site {
    families: Families::Dual,
    pods: &[
        (0, "dns", 2),
        (0, "web-1", 3),
        (0, "client-1", 6),
        (1, "dns-2", 2),
        (1, "solo", 3),
        (1, "web-2", 4),
        (1, "client-2", 6),
    ],
    web: &["web-1", "web-2"],
    local: [&[], &["solo"]],
    services: &[DUAL_STACK_IPV4, DUAL_STACK_IPV6],
};

/// The same cluster with IPv6 as the first family of its nodes and pods.
const IPV6_FIRST: Site =
    Site { families: Families::DualV6First, services: &[DUAL_STACK_IPV6, DUAL_STACK_IPV4], ..DUAL_STACK };

const DUAL_STACK_IPV4: Services = Services {
    web: v4([10, 96, 253, 217]),
    web_sticky: v4([10, 96, 201, 254]),
    web_external: v4([203, 0, 113, 7]),
    solo: v4([10, 96, 83, 94]),
    nobody: v4([10, 96, 47, 200]),
    dns: Some((v4([10, 96, 0, 10]), &["dns", "dns-2"])),
    kubernetes: Some(v4([10, 96, 0, 1])),
};

const DUAL_STACK_IPV6: Services = Services {
    web: v6(0xfd00, 0x10, 0x96, 0x60cf),
    web_sticky: v6(0xfd00, 0x10, 0x96, 0xfc65),
    web_external: v6(0x2001, 0xdb8, 0x200, 7),
    solo: v6(0xfd00, 0x10, 0x96, 0xeb6a),
    nobody: v6(0xfd00, 0x10, 0x96, 0x43e5),
    dns: None,
    kubernetes: None,
};

/// The cluster with IPv4 alone of `testdata/kube-proxy`.
const IPV4: Site = Site {
    families: Families::V4,
    pods: &[
        (0, "dns", 2),
        (0, "web-1", 3),
        (0, "client-1", 4),
        (1, "web-2", 2),
        (1, "web-3", 3),
        (1, "solo", 4),
        (1, "client-2", 5),
    ],
    web: &["web-1", "web-2", "web-3"],
    local: [&["web-1"], &["web-2", "web-3"]],
    services: &[Services {
        web: v4([10, 96, 66, 215]),
        web_sticky: v4([10, 96, 100, 133]),
        web_external: v4([198, 51, 100, 7]),
        solo: v4([10, 96, 93, 248]),
        nobody: v4([10, 96, 59, 99]),
        dns: Some((v4([10, 96, 0, 10]), &["dns"])),
        kubernetes: Some(v4([10, 96, 0, 1])),
    }],
};

/// The address of a node's first device, which comes before the uplink.
const DOCKER: IpAddr = v4([172, 17, 0, 1]);

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// Returns an address with five zeros before its last part.
const fn v6(a: u16, b: u16, c: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, last))
}

impl Services {
    fn web_tcp(&self) -> SocketAddr {
        SocketAddr::new(self.web, 80)
    }

    fn web_udp(&self) -> SocketAddr {
        SocketAddr::new(self.web, 81)
    }

    fn solo(&self) -> SocketAddr {
        SocketAddr::new(self.solo, 80)
    }
}

/// A running cluster, as seen in one family.
///
/// Its nodes have two devices with addresses besides the uplink: `docker0`, and a second uplink to
/// the neighbour.
struct Cluster {
    pods: BTreeMap<&'static str, Pod>,
    /// A host that shares a link with each node, `eth1` with 10.201.N.1 and fd00:10:201:N::1. It
    /// reaches the node's own address by that link.
    neighbour: Ns,
    /// The rules of every node, before the agent and the first pod came.
    rules: Vec<Rules>,
    proxy: KubeProxy,
    mode: Mode,
    site: &'static Site,
    /// The place of the family among those of the lab.
    family: usize,
    lab: Lab,
}

impl Cluster {
    /// Runs a test in both modes of Podwire with both modes of kube-proxy, for each family of a
    /// cluster. Afterwards every node must have the same rules as before.
    fn each(test: impl Fn(&Self)) {
        Self::each_of(&Lab::builder(), test);
    }

    fn each_of(builder: &Builder, test: impl Fn(&Self)) {
        for (mode, proxy, site) in [
            (Mode::Vxlan, KubeProxy::Nftables, &DUAL_STACK),
            (Mode::Vxlan, KubeProxy::Iptables, &DUAL_STACK),
            (Mode::Direct, KubeProxy::Nftables, &DUAL_STACK),
            (Mode::Direct, KubeProxy::Iptables, &DUAL_STACK),
            (Mode::Vxlan, KubeProxy::Iptables, &IPV4),
            (Mode::Direct, KubeProxy::Nftables, &IPV4),
        ] {
            Self::once(builder.clone().mode(mode), mode, proxy, site, &test);
        }
    }

    /// Does the same in a tunnel of IPv6, with one mode of kube-proxy.
    fn in_a_tunnel_of_ipv6(test: impl Fn(&Self)) {
        let builder = Lab::builder().agent_arguments(&["--tunnel-family", "ipv6"]);
        Self::once(builder, Mode::Vxlan, KubeProxy::Nftables, &DUAL_STACK, test);
    }

    /// Does the same where the first family is IPv6, with one mode of kube-proxy.
    fn with_ipv6_first(test: impl Fn(&Self)) {
        Self::once(Lab::builder(), Mode::Vxlan, KubeProxy::Iptables, &IPV6_FIRST, test);
    }

    fn once(builder: Builder, mode: Mode, proxy: KubeProxy, site: &'static Site, test: impl Fn(&Self)) {
        let mut cluster = Self::new(builder, mode, proxy, site);
        for family in 0..site.services.len() {
            cluster.family = family;
            // Cargo prints this when a test fails.
            println!("{mode:?}, kube-proxy with {proxy:?}, {:?}", cluster.node_address(0));
            test(&cluster);
        }
        let rules: Vec<Rules> = cluster.lab.nodes().iter().map(Rules::of).collect();
        assert_eq!(rules, cluster.rules, "the node does not have the rules that it had before");
    }

    fn new(builder: Builder, mode: Mode, proxy: KubeProxy, site: &'static Site) -> Self {
        let lab = builder.families(site.families).agents(false).docker(true).build().unwrap();
        let neighbour = add_neighbour(&lab).unwrap();
        for node in lab.nodes() {
            match site.families {
                Families::V4 => proxy.write_rules(node),
                _ => proxy.write_dual_stack_rules(node),
            }
            .unwrap();
        }
        let rules = lab.nodes().iter().map(Rules::of).collect();
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let pods = site.pods.iter().map(|(node, name, last)| (*name, add_pod(lab.node(*node), name, *last)));
        Self { pods: pods.collect(), neighbour, rules, proxy, mode, site, family: 0, lab }
    }

    fn services(&self) -> &Services {
        &self.site.services[self.family]
    }

    fn pod(&self, name: &str) -> &Pod {
        &self.pods[name]
    }

    /// Returns a pod's address in the family of this view.
    fn address(&self, pod: &str) -> IpAddr {
        self.pod(pod).addresses()[self.family]
    }

    fn node_address(&self, node: usize) -> IpAddr {
        self.lab.node(node).addresses()[self.family]
    }

    /// Starts the backends of the services.
    fn serve(&self) -> Backends {
        let mut backends = Backends::at(unspecified(self.node_address(0)));
        for name in self.site.web {
            backends.tcp(self.pod(name), name, 8080);
            backends.udp(self.pod(name), name, 8081);
        }
        backends.tcp(self.pod("solo"), "solo", 8080);
        for name in self.services().dns.map_or(&[][..], |(_, pods)| pods) {
            backends.tcp(self.pod(name), name, 53);
            backends.udp(self.pod(name), name, 53);
        }
        backends.tcp(self.lab.node(0), "node1", 6443);
        backends
    }

    /// Returns the node (from 0) of a backend.
    fn node_of(&self, backend: &str) -> usize {
        let pod = self.site.pods.iter().find(|(_, name, _)| *name == backend);
        let node = || self.lab.nodes().iter().position(|node| node.name() == backend);
        pod.map(|(node, ..)| *node).or_else(node).unwrap()
    }

    /// Returns the address of a node's (from 0) second uplink.
    fn second_address(&self, node: usize) -> IpAddr {
        beside(self.node_address(node), node, OWN)
    }

    /// Returns the neighbour, and its address in the network of a node's (from 0) second uplink.
    fn neighbour(&self, node: usize) -> (&Ns, IpAddr) {
        (&self.neighbour, beside(self.node_address(node), node, DISTANT))
    }
}

fn add_pod(node: &Node, name: &str, last: u8) -> Pod {
    let number = node.name().trim_start_matches("node");
    let of_families = [format!("10.244.{number}.{last}/24"), format!("fd00:10:244:{number}::{last}/64")];
    node.add_pod_with(name, &json!({ "ips": of_families[..node.addresses().len()] })).unwrap()
}

/// All rules of a node, without their counts and the clients that they have seen.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    nft: Vec<String>,
    /// For IPv4 and for IPv6.
    iptables: Vec<String>,
}

impl Rules {
    fn of(node: &Node) -> Self {
        let nft = node.exec(&["nft", "--stateless", "list", "ruleset"]).unwrap();
        let iptables = ["iptables-save", "ip6tables-save"].map(|tool| node.exec(&[tool]).unwrap()).concat();
        let mut in_dynamic_set = false;
        let is_rule = |line: &&str| {
            in_dynamic_set = match line.trim() {
                "flags dynamic,timeout" => true,
                "}" => false,
                _ => in_dynamic_set,
            };
            // Leave out the elements: the clients of a service with affinity.
            !in_dynamic_set || ["flags", "timeout"].iter().any(|kept| line.trim().starts_with(kept))
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
