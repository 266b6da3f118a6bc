//! At which addresses and ports this node serves a Service, and which backends its clients reach:
//! as kube-proxy of Kubernetes 1.36 decides. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::{NonZeroU16, NonZeroU32};

use ipnet::IpNet;

use super::endpoints::{Candidate, candidates};
use super::{EndpointSlice, Protocol, Service, ServicePort, TrafficPolicy, topology};
use crate::model::Family;

/// What the decisions need of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisNode {
    /// `metadata.name`.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// InternalIP of each family.
    pub addresses: Vec<IpAddr>,
}

/// A port of a Service in one family, as this node serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedPort {
    /// Name of the Service's port.
    pub name: String,
    /// Protocol of all its frontends and backends.
    pub protocol: Protocol,
    /// Family of all its frontends and backends.
    pub family: Family,
    /// Seconds for which a client keeps its backend. A client has one backend for all frontends
    /// of the port.
    pub affinity: Option<NonZeroU32>,
    /// Backends for the traffic policy `Cluster`, sorted. Empty if no client has this policy.
    pub cluster: Vec<Backend>,
    /// Backends for the traffic policy `Local`, sorted. Empty if no client has this policy.
    pub local: Vec<Backend>,
    /// Of a UDP port, all endpoints that serve, sorted. A flow to one of them goes on, whether or not
    /// new flows go there. If there is none at all, kube-proxy leaves UDP flows as they are.
    pub serving: Vec<Backend>,
    /// Where clients reach the port: ClusterIP, NodePort, then the others by address.
    pub frontends: Vec<Frontend>,
}

/// An endpoint of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: NonZeroU16,
    /// Whether it is on this node.
    pub is_local: bool,
}

/// An address and port at which clients reach a Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The address; for a NodePort the unspecified one, which stands for all node addresses of the
    /// family.
    pub address: IpAddr,
    /// The port.
    pub port: NonZeroU16,
    /// What the address is.
    pub kind: FrontendKind,
    /// For this node's pods and processes. `externalTrafficPolicy: Local` does not hold for them.
    pub inside: Answer,
    /// For clients outside the cluster. None for a ClusterIP, which is for clients inside.
    pub outside: Option<Answer>,
    /// Whether backends see the addresses of clients outside.
    pub keeps_client_address: bool,
    /// The only clients that get an answer, inside and outside; the others' packets are dropped.
    /// Empty: all clients.
    pub source_ranges: Vec<IpNet>,
}

/// What an address of a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// One of `spec.clusterIPs`.
    ClusterIp,
    /// Any node address, with the port's `nodePort`.
    NodePort,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// One of `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
}

impl FrontendKind {
    /// Returns the name that commands show.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::NodePort => "node-port",
            Self::ExternalIp => "external-ip",
            Self::LoadBalancer => "load-balancer",
        }
    }
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// One of [`ServedPort::cluster`], which is not empty, gets it.
    Cluster,
    /// One of [`ServedPort::local`], which is not empty, gets it.
    Local,
    /// It is refused: no endpoint of the port can be used anywhere.
    Refused,
    /// It is dropped: the policy is `Local`, and only other nodes have usable endpoints.
    Dropped,
}

impl ServedPort {
    /// Returns the backends among which a new connection has the choice. Empty if it has none.
    pub fn backends(&self, answer: Answer) -> &[Backend] {
        match answer {
            Answer::Cluster => &self.cluster,
            Answer::Local => &self.local,
            Answer::Refused | Answer::Dropped => &[],
        }
    }
}

#[cfg(test)]
impl ServedPort {
    /// A port 80 of TCP over IPv4, for tests: its frontends, and the backends that all of them have.
    pub fn example(frontends: &[(FrontendKind, IpAddr)], backends: &[IpAddr]) -> Self {
        let port = NonZeroU16::new(80).unwrap();
        let frontend = |(kind, address): &(FrontendKind, IpAddr)| Frontend {
            address: *address,
            port,
            kind: *kind,
            inside: Answer::Cluster,
            outside: None,
            keeps_client_address: false,
            source_ranges: Vec::new(),
        };
        let backend = |address: &IpAddr| Backend { address: *address, port, is_local: false };
        Self {
            name: String::new(),
            protocol: Protocol::Tcp,
            family: Family::V4,
            affinity: None,
            cluster: backends.iter().map(backend).collect(),
            local: Vec::new(),
            serving: Vec::new(),
            frontends: frontends.iter().map(frontend).collect(),
        }
    }
}

/// Returns what this node serves of a Service: each port in each family of its ClusterIPs. A family
/// without a ClusterIP has no frontends of another kind either.
///
/// `slices`: all EndpointSlices of this Service, in any order.
pub fn served_ports(service: &Service, slices: &[&EndpointSlice], node: &ThisNode) -> Vec<ServedPort> {
    let mut served = Vec::with_capacity(service.ports.len() * service.families().count());
    for port in &service.ports {
        for family in service.families() {
            let candidates = candidates(slices, family, &port.name, port.protocol, node);
            served.push(served_port(service, port, family, &candidates, node));
        }
    }
    served
}

fn served_port(
    service: &Service,
    port: &ServicePort,
    family: Family,
    candidates: &[Candidate<'_>],
    node: &ThisNode,
) -> ServedPort {
    let addresses = addresses(service, port, family);
    let cluster = topology::cluster(candidates, node);
    let local = topology::local(candidates);
    let answer = |policy| match policy {
        _ if cluster.is_empty() => Answer::Refused,
        TrafficPolicy::Cluster => Answer::Cluster,
        TrafficPolicy::Local if local.is_empty() => Answer::Dropped,
        TrafficPolicy::Local => Answer::Local,
    };
    let frontend = |(&(address, port), &kind)| {
        let (inside, outside) = policies(service, kind);
        Frontend {
            address,
            port,
            kind,
            inside: answer(inside),
            outside: outside.map(answer),
            keeps_client_address: outside == Some(TrafficPolicy::Local),
            source_ranges: match kind {
                FrontendKind::LoadBalancer => source_ranges(service, family, node),
                _ => Vec::new(),
            },
        }
    };
    let mut frontends: Vec<_> = addresses.iter().map(frontend).collect();
    frontends.shrink_to_fit();
    frontends.sort_by_key(|frontend| (frontend.kind, frontend.address));
    let has_clients = |policy| {
        let mut policies = addresses.values().map(|kind| policies(service, *kind));
        policies.any(|(inside, outside)| inside == policy || outside == Some(policy))
    };
    let is_kept =
        |candidate: &&Candidate<'_>| port.protocol == Protocol::Udp && candidate.endpoint.is_serving;
    let serving = candidates.iter().filter(is_kept);
    ServedPort {
        name: port.name.clone(),
        protocol: port.protocol,
        family,
        affinity: service.affinity,
        serving: serving.map(|candidate| candidate.backend).collect(),
        frontends,
        cluster: if has_clients(TrafficPolicy::Cluster) { cluster } else { Vec::new() },
        local: if has_clients(TrafficPolicy::Local) { local } else { Vec::new() },
    }
}

/// Returns the policies for clients inside and outside. Clients inside reach what is meant for
/// clients outside as if their packets came back from a load balancer: any backend may answer.
fn policies(service: &Service, kind: FrontendKind) -> (TrafficPolicy, Option<TrafficPolicy>) {
    match kind {
        FrontendKind::ClusterIp => (service.internal_policy, None),
        _ => (TrafficPolicy::Cluster, Some(service.external_policy)),
    }
}

/// Returns the addresses and ports of a Service's port in a family. If one has several kinds, the
/// last one counts, as in kube-proxy: an external IP that is also the load balancer's has the
/// load balancer's source ranges. A ClusterIP stays one: otherwise another service could take it
/// ([`super::ServedServices`]).
fn addresses(
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> BTreeMap<(IpAddr, NonZeroU16), FrontendKind> {
    let any = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let node_port = port.node_port.map(|port| ((any, port), FrontendKind::NodePort));
    let of_kind = |addresses: &[IpAddr], kind| {
        let addresses = addresses.iter().filter(|address| Family::of(**address) == family);
        addresses.map(|address| ((*address, port.port), kind)).collect::<Vec<_>>()
    };
    let all = node_port
        .into_iter()
        .chain(of_kind(&service.external_ips, FrontendKind::ExternalIp))
        .chain(of_kind(&service.load_balancer_ips, FrontendKind::LoadBalancer))
        .chain(of_kind(&service.cluster_ips, FrontendKind::ClusterIp));
    all.collect()
}

/// Returns the clients that may use a Service's load balancer addresses of a family. Ranges of the
/// other family alone restrict nobody, as in kube-proxy.
fn source_ranges(service: &Service, family: Family, node: &ThisNode) -> Vec<IpNet> {
    let is_of_family = |address: &IpAddr| Family::of(*address) == family;
    let ranges = service.source_ranges.iter().filter(|range| is_of_family(&range.addr()));
    let mut ranges: Vec<_> = ranges.map(IpNet::trunc).collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return Vec::new();
    }
    // A load balancer's address may be one of this node's. Then this node's processes have it as
    // their source.
    let is_in_range = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
    if node.addresses.iter().any(is_in_range) {
        let own = service.load_balancer_ips.iter().copied().filter(is_of_family);
        ranges.extend(own.map(IpNet::from));
    }
    ranges.sort();
    ranges.dedup();
    ranges
}
