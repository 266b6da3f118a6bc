//! The node list, and which of its nodes can be used.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use thiserror::Error;

use crate::model::{Family, Node};

pub mod changes;

pub mod flannel;

/// Prefix of a node's name in [`NodeProblem::Malformed`].
pub const ENTRY: &str = "node ";

/// A node list from a source: every Node object that exists.
#[derive(Debug)]
pub struct NodeList {
    /// Its entries.
    pub records: Vec<NodeRecord>,
    /// Entries that do not decode.
    pub problems: Vec<NodeProblem>,
    /// Age of the list: the time since the source last confirmed it. Zero if the source sends it
    /// now; more if it is the last good list from the disk.
    pub age: Duration,
}

/// The fields of a Node object that the agent reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`. Another uid means another object with the same name.
    pub uid: Option<String>,
    /// `metadata.creationTimestamp` (RFC 3339 in UTC, so that the later text is the later time).
    pub created: Option<String>,
    /// `spec.podCIDRs`, or `spec.podCIDR` alone.
    pub pod_networks: Vec<IpNet>,
    /// `spec.unschedulable`.
    pub cordoned: bool,
    /// `status.addresses` of type `InternalIP`.
    pub internal_addresses: Vec<IpAddr>,
    /// `status.nodeInfo.operatingSystem`, or the label `kubernetes.io/os`.
    pub operating_system: Option<String>,
    /// The label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Whether it is about to go: it has the taint `ToBeDeletedByClusterAutoscaler`, or is being
    /// deleted.
    pub is_leaving: bool,
    /// Whether the condition `NetworkUnavailable` is true. A cloud provider sets it until the
    /// node's network is set up.
    pub network_unavailable: bool,
    /// Flannel's announcement of the node.
    pub flannel: Option<flannel::Lease>,
}

/// The nodes that can be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// This node.
    pub own: Option<Node>,
    /// The others, by name.
    pub remote: BTreeMap<String, Node>,
    /// The nodes that are left out, by name.
    pub skipped: BTreeMap<String, Skipped>,
}

/// Reason why a node has no part in the pod network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skipped {
    /// It has no podCIDR, or none yet.
    NoPodNetwork,
    /// It has no InternalIP, or none yet.
    NoInternalAddress,
    /// It does not run Linux.
    OtherSystem,
    /// It contradicts another node, or this node's own network.
    Contradiction,
    /// Its object does not decode.
    Malformed,
}

impl Skipped {
    /// All reasons.
    pub const ALL: [Self; 5] = [
        Self::NoPodNetwork,
        Self::NoInternalAddress,
        Self::OtherSystem,
        Self::Contradiction,
        Self::Malformed,
    ];

    /// Returns the name that metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoPodNetwork => "no-pod-cidr",
            Self::NoInternalAddress => "no-internal-ip",
            Self::OtherSystem => "other-operating-system",
            Self::Contradiction => "contradiction",
            Self::Malformed => "malformed",
        }
    }
}

/// Reason why a node, or a part of its entry, is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum NodeProblem {
    /// An entry of the list does not decode.
    #[error("{entry} of the node list is skipped: {reason}")]
    Malformed {
        /// Name or position.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This node has no podCIDR.
    #[error(
        "this node, {node}, has no network in spec.podCIDRs: waiting for it (is the cluster's podCIDR allocation on? kube-controller-manager --allocate-node-cidrs)"
    )]
    NoPodNetwork {
        /// Its name.
        node: String,
    },
    /// This node has no InternalIP.
    #[error(
        "this node, {node}, has no address of type InternalIP in status.addresses: waiting for it (kubelet --node-ip)"
    )]
    NoInternalAddress {
        /// Its name.
        node: String,
    },
    /// This node's object says that it does not run Linux.
    #[error(
        "this node, {node}, runs another operating system, according to its Node object (is --node-name right?)"
    )]
    OtherSystem {
        /// Its name.
        node: String,
    },
    /// The podCIDRs of two nodes overlap.
    #[error("node {node} is skipped: its podCIDR {network} overlaps {other_network} of node {other}")]
    Overlap {
        /// The skipped node: its object is younger, or as old and its name is later.
        node: String,
        /// Its podCIDR.
        network: IpNet,
        /// The other node: kept.
        other: String,
        /// The other node's podCIDR.
        other_network: IpNet,
    },
    /// Two nodes have the same InternalIP.
    #[error(
        "node {node} is skipped: its InternalIP {address} is node {other}'s as well, and the agent prefers the newer Node object: give each node its own address"
    )]
    SameAddress {
        /// The skipped node: its object is older, or as old and its name is later.
        node: String,
        /// The address.
        address: IpAddr,
        /// The other node: kept.
        other: String,
    },
    /// A podCIDR contains a part of this node's own network, and would make it unreachable.
    #[error(
        "node {node} is skipped: its podCIDR {network} contains {here}, which this node's uplink or default gateway uses: give the cluster another pod network"
    )]
    OverlapsUnderlay {
        /// Its name.
        node: String,
        /// Its podCIDR.
        network: IpNet,
        /// A network of an uplink, an address of this node there, or its router.
        here: IpNet,
    },
    /// A podCIDR from which no pod can have an address.
    #[error(
        "node {node} is skipped: its podCIDR {network} cannot be a pod network: it is in 0.0.0.0/8, ::/8, loopback, multicast, link-local, or larger than a /8"
    )]
    NoNetworkOfPods {
        /// Its name.
        node: String,
        /// Its podCIDR.
        network: IpNet,
    },
    /// Two entries have the same name.
    #[error("node {node} is listed more than once: the first entry is used")]
    SameName {
        /// The name.
        node: String,
    },
    /// This node is not in the list.
    #[error("this node, {node}, is not in the node list: waiting for it (is --node-name right?)")]
    OwnMissing {
        /// `--node-name`.
        node: String,
    },
    /// A problem of a node that runs flannel, or ran it.
    #[error("node {node}: {problem}")]
    Flannel {
        /// Its name.
        node: String,
        /// What is wrong, and what to do.
        problem: flannel::Problem,
    },
    /// A second InternalIP that another node or a podCIDR has as well.
    #[error(
        "node {node}: its second InternalIP {address} is ignored, because another node or a podCIDR has it as well: give each node its own addresses"
    )]
    DoubtfulAddress {
        /// Its name.
        node: String,
        /// The address.
        address: IpAddr,
    },
    /// Other nodes have podCIDRs of a family of which this node has none.
    #[error(
        "this node, {node}, has no {family} podCIDR, but node {other} has: this node's pods get no {family} address (is the podCIDR allocation of the cluster dual-stack? kube-controller-manager --cluster-cidr)"
    )]
    NoPodNetworkOfFamily {
        /// This node's name.
        node: String,
        /// The family.
        family: Family,
        /// A node that has one.
        other: String,
    },
    /// The tunnel needs addresses of one family at both ends.
    #[error(
        "node {node} has no InternalIP of a family that this node has: no tunnel leads to its pods (kubelet --node-ip)"
    )]
    NoCommonFamily {
        /// The other node's name.
        node: String,
    },
    /// By direct routing, the next hop to a node's pods is the node's InternalIP of their family.
    #[error(
        "node {node} has the podCIDR {network}, but no {family} address of type InternalIP: without a tunnel its {family} pods are reached only by routes that the host already has (kubelet --node-ip)"
    )]
    NoNextHopOfFamily {
        /// The node's name.
        node: String,
        /// Its podCIDR.
        network: IpNet,
        /// The family.
        family: Family,
    },
}

impl Cluster {
    /// Decides which entries of a node list can be used:
    ///
    /// - Of two nodes with one address, the younger object is used: its kubelet has just reported
    ///   the address, so the machine of the other object is gone.
    /// - Of two podCIDRs that overlap, the older object's is used: a new node takes nothing from
    ///   existing ones.
    /// - Otherwise the name decides, so that every node of the cluster decides alike.
    ///
    /// No other node's podCIDR may contain an entry of `underlay`: the networks of this node's
    /// uplinks, and its addresses and routers there.
    pub fn from_records(
        records: &[NodeRecord],
        own_name: &str,
        underlay: &[IpNet],
    ) -> (Self, Vec<NodeProblem>) {
        let mut problems = Vec::new();
        let mut by_name: BTreeMap<&str, &NodeRecord> = BTreeMap::new();
        for record in records {
            if by_name.contains_key(record.name.as_str()) {
                problems.push(NodeProblem::SameName { node: record.name.clone() });
            } else {
                by_name.insert(&record.name, record);
            }
        }

        let mut skipped = BTreeMap::new();
        let mut candidates = Vec::new();
        for record in by_name.into_values() {
            match complete(record) {
                Ok(node) => candidates.push(Candidate { node, created: record.created.as_deref() }),
                Err(reason) => {
                    if record.name == own_name {
                        problems.extend(reason.of_this_node(own_name));
                    }
                    skipped.insert(record.name.clone(), reason);
                }
            }
        }
        candidates
            .sort_by(|one, other| (one.created, &one.node.name).cmp(&(other.created, &other.node.name)));
        let mut contradictions = leave_out_replaced(&mut candidates);
        let mut accepted = Accepted::default();
        for Candidate { node, .. } in candidates {
            let underlay = if node.name == own_name { &[] } else { underlay };
            contradictions.extend(accepted.add(node, underlay).err());
        }
        skipped.extend(contradictions.iter().filter_map(|problem| {
            let name = problem.node()?;
            Some((name.to_owned(), Skipped::Contradiction))
        }));
        problems.append(&mut contradictions);
        problems.extend(accepted.ignore_doubtful_addresses());
        let mut remote = accepted.nodes;
        let own = remote.remove(own_name);
        problems.extend(own.iter().flat_map(|own| families_missing(own, &remote)));
        if own.is_none() && !records.iter().any(|record| record.name == own_name) {
            problems.push(NodeProblem::OwnMissing { node: own_name.into() });
        }
        (Self { own, remote, skipped }, problems)
    }
}

impl NodeProblem {
    /// Returns whether the problem keeps the node with this name from serving.
    pub fn concerns(&self, name: &str) -> bool {
        match self {
            Self::Malformed { .. } => self.malformed() == Some(name),
            other => other.node() == Some(name),
        }
    }

    /// Returns the name or position of an entry that does not decode.
    pub fn malformed(&self) -> Option<&str> {
        match self {
            Self::Malformed { entry, .. } => Some(entry.strip_prefix(ENTRY).unwrap_or(entry)),
            _ => None,
        }
    }

    /// Returns the node that has no part in the network because of the problem.
    fn node(&self) -> Option<&str> {
        match self {
            Self::NoPodNetwork { node }
            | Self::NoInternalAddress { node }
            | Self::OtherSystem { node }
            | Self::Overlap { node, .. }
            | Self::SameAddress { node, .. }
            | Self::OverlapsUnderlay { node, .. }
            | Self::NoNetworkOfPods { node, .. }
            | Self::OwnMissing { node } => Some(node),
            Self::Malformed { .. }
            | Self::SameName { .. }
            | Self::Flannel { .. }
            | Self::DoubtfulAddress { .. }
            | Self::NoPodNetworkOfFamily { .. }
            | Self::NoCommonFamily { .. }
            | Self::NoNextHopOfFamily { .. } => None,
        }
    }
}

/// A node with a complete entry.
struct Candidate<'a> {
    node: Node,
    created: Option<&'a str>,
}

/// Removes the nodes of which another node has the first address of a family: of two, the older
/// object, or of the same age the one with the later name.
fn leave_out_replaced(candidates: &mut Vec<Candidate<'_>>) -> Vec<NodeProblem> {
    let mut owners: BTreeMap<IpAddr, (Option<&str>, String)> = BTreeMap::new();
    for Candidate { node, created } in &*candidates {
        for address in node.first_addresses() {
            let is_younger = owners.get(&address).is_none_or(|(there, _)| there < created);
            if is_younger {
                owners.insert(address, (*created, node.name.clone()));
            }
        }
    }
    let mut problems = Vec::new();
    candidates.retain(|Candidate { node, .. }| {
        let replaced = node.first_addresses().find_map(|address| {
            let (_, other) = &owners[&address];
            let node = node.name.clone();
            (*other != node).then(|| NodeProblem::SameAddress { node, address, other: other.clone() })
        });
        let stays = replaced.is_none();
        problems.extend(replaced);
        stays
    });
    problems
}

/// The nodes so far, with an index that finds a contradiction without comparing every pair.
#[derive(Default)]
struct Accepted {
    nodes: BTreeMap<String, Node>,
    networks: BTreeMap<IpAddr, (IpNet, String)>,
}

impl Accepted {
    fn add(&mut self, node: Node, underlay: &[IpNet]) -> Result<(), NodeProblem> {
        for network in node.pod_networks.iter().copied() {
            self.check(&node.name, network, underlay)?;
        }
        for network in &node.pod_networks {
            self.networks.insert(network.network(), (*network, node.name.clone()));
        }
        self.nodes.insert(node.name.clone(), node);
        Ok(())
    }

    fn check(&self, name: &str, network: IpNet, underlay: &[IpNet]) -> Result<(), NodeProblem> {
        let node = || name.to_owned();
        if let Some(here) = underlay.iter().find(|here| network.contains(*here)) {
            return Err(NodeProblem::OverlapsUnderlay { node: node(), network, here: *here });
        }
        let first = network.network();
        let is_odd = match first {
            IpAddr::V4(first) => first.is_link_local() || first.octets()[0] == 0,
            // Unspecified, loopback, and addresses that contain IPv4 addresses (RFC 4291 section
            // 2.5.5) are in `::/8`.
            IpAddr::V6(first) => first.is_unicast_link_local() || first.octets()[0] == 0,
        };
        if network.prefix_len() < 8 || first.is_loopback() || first.is_multicast() || is_odd {
            return Err(NodeProblem::NoNetworkOfPods { node: node(), network });
        }
        // The accepted networks do not overlap. So of those that begin before this one ends, only
        // the last can reach into it.
        let before = self.networks.range(..=network.broadcast()).next_back();
        if let Some((_, (other_network, other))) = before
            && other_network.broadcast() >= network.network()
        {
            let (other_network, other) = (*other_network, other.clone());
            return Err(NodeProblem::Overlap { node: node(), network, other, other_network });
        }
        Ok(())
    }

    /// Removes second addresses that several nodes have, or that lie in a podCIDR.
    fn ignore_doubtful_addresses(&mut self) -> Vec<NodeProblem> {
        let mut named: BTreeMap<IpAddr, u32> = BTreeMap::new();
        for address in self.nodes.values().flat_map(Node::addresses) {
            *named.entry(address).or_default() += 1;
        }
        let networks = &self.networks;
        let is_pods = |address: &IpAddr| {
            networks.range(..=*address).next_back().is_some_and(|(_, (network, _))| network.contains(address))
        };
        let mut problems = Vec::new();
        for node in self.nodes.values_mut() {
            let first: Vec<_> = node.first_addresses().collect();
            node.internal_addresses.retain(|address| {
                let is_doubtful = !first.contains(address) && (named[address] > 1 || is_pods(address));
                if is_doubtful {
                    problems
                        .push(NodeProblem::DoubtfulAddress { node: node.name.clone(), address: *address });
                }
                !is_doubtful
            });
        }
        problems
    }
}

impl Skipped {
    /// Returns the problem to report if the skipped node is this one. That other nodes are skipped
    /// for this reason is harmless, but this node cannot serve.
    fn of_this_node(self, node: &str) -> Option<NodeProblem> {
        let node = node.into();
        match self {
            Self::NoPodNetwork => Some(NodeProblem::NoPodNetwork { node }),
            Self::NoInternalAddress => Some(NodeProblem::NoInternalAddress { node }),
            Self::OtherSystem => Some(NodeProblem::OtherSystem { node }),
            // Other problems report these with more detail.
            Self::Contradiction | Self::Malformed => None,
        }
    }
}

fn complete(record: &NodeRecord) -> Result<Node, Skipped> {
    if record.operating_system.as_deref().is_some_and(|system| system != "linux") {
        return Err(Skipped::OtherSystem);
    }
    // Kubernetes allows one podCIDR of each family.
    let of_family = |family| {
        let mut networks = record.pod_networks.iter();
        networks.find(|network| Family::of(network.addr()) == family).map(IpNet::trunc)
    };
    let mut pod_networks: Vec<_> = Family::ALL.into_iter().filter_map(of_family).collect();
    if record.pod_networks.first().is_some_and(|first| Family::of(first.addr()) == Family::V6) {
        pod_networks.reverse();
    }
    if pod_networks.is_empty() {
        return Err(Skipped::NoPodNetwork);
    }
    let mut internal_addresses = Vec::new();
    for address in record.internal_addresses.iter().copied() {
        let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !is_link_local && !internal_addresses.contains(&address) {
            internal_addresses.push(address);
        }
    }
    if internal_addresses.is_empty() {
        return Err(Skipped::NoInternalAddress);
    }
    let (name, uid, cordoned) = (record.name.clone(), record.uid.clone(), record.cordoned);
    let vtep_macs = record.flannel.as_ref().map(flannel::Lease::vtep_macs).unwrap_or_default();
    Ok(Node { name, uid, pod_networks, internal_addresses, cordoned, vtep_macs })
}

/// Returns what this node lacks to serve every family of the cluster.
fn families_missing(own: &Node, remote: &BTreeMap<String, Node>) -> Vec<NodeProblem> {
    let has = |node: &Node, family| node.pod_network(family).is_some();
    let missing = Family::ALL.into_iter().filter(|family| !has(own, *family));
    missing
        .filter_map(|family| {
            let other = remote.values().find(|other| has(other, family))?;
            let (node, other) = (own.name.clone(), other.name.clone());
            Some(NodeProblem::NoPodNetworkOfFamily { node, family, other })
        })
        .collect()
}

/// Returns, for tunnels, the nodes with which this node has no family in common.
pub fn without_common_family<'a>(own: &Node, remote: impl Iterator<Item = &'a Node>) -> Vec<NodeProblem> {
    let has_one = |node: &Node| {
        Family::ALL.into_iter().any(|family| own.address_of(family).and(node.address_of(family)).is_some())
    };
    remote
        .filter(|node| !has_one(node))
        .map(|node| NodeProblem::NoCommonFamily { node: node.name.clone() })
        .collect()
}

/// Returns, for direct routing, the nodes with pods of a family of which they have no InternalIP.
pub fn without_next_hop<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<NodeProblem> {
    let problems = nodes.flat_map(|node| {
        node.pod_networks.iter().filter_map(move |network| {
            let (node, network, family) = (node, *network, Family::of(network.addr()));
            let is_missing = node.address_of(family).is_none();
            is_missing.then(|| NodeProblem::NoNextHopOfFamily { node: node.name.clone(), network, family })
        })
    });
    problems.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(name: &str, pod_networks: &[&str], addresses: &[&str]) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            pod_networks: pod_networks.iter().map(|network| network.parse().unwrap()).collect(),
            internal_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..NodeRecord::default()
        }
    }

    fn check(records: &[NodeRecord], own: Option<&str>, remote: &[&str], messages: &[&str]) {
        let underlay = ["10.200.0.0/24", "10.200.0.1/32"].map(|network| network.parse().unwrap());
        let (cluster, problems) = Cluster::from_records(records, "node1", &underlay);
        assert_eq!(cluster.own.map(|node| node.name).as_deref(), own);
        assert_eq!(cluster.remote.keys().map(String::as_str).collect::<Vec<_>>(), remote);
        let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), messages.len(), "{said:?}");
        for (said, expected) in said.iter().zip(messages) {
            assert!(said.contains(expected), "`{said}` should contain `{expected}`");
        }
    }

    #[test]
    fn a_second_address_belongs_to_one_node_or_to_none() {
        let others = |records: &[NodeRecord]| {
            let (cluster, problems) = Cluster::from_records(records, "node1", &[]);
            let others = cluster.remote["node2"].internal_addresses[1..].to_vec();
            (others, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let node2 =
            record("node2", &["10.244.2.0/24"], &["10.200.0.2", "fd00::2", "192.0.2.2", "10.200.0.2"]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let node1 = |address| record("node1", &["10.244.1.0/24"], &["10.200.0.1", address]);
        let both = vec![ip("fd00::2"), ip("192.0.2.2")];
        assert_eq!(others(&[node1("192.0.2.1"), node2.clone()]), (both, vec![]));
        let (left, problems) = others(&[node1("192.0.2.2"), node2]);
        assert_eq!(left, [ip("fd00::2")]);
        assert!(
            problems.len() == 2 && problems[1].contains("node2: its second InternalIP 192.0.2.2"),
            "{problems:?}"
        );
        let of_a_pod = record("node2", &["10.244.2.0/24"], &["10.200.0.2", "10.244.1.9"]);
        let (left, problems) = others(&[node1("192.0.2.1"), of_a_pod]);
        assert!(left.is_empty() && problems.len() == 1, "{problems:?}");
    }

    #[test]
    fn complete_entries_are_used() {
        let records = [
            record("node2", &["10.244.2.0/24"], &["10.200.0.2"]),
            record("node1", &["10.244.1.0/24"], &["10.200.0.1"]),
        ];
        check(&records, Some("node1"), &["node2"], &[]);
    }

    #[test]
    fn nodes_without_a_part_in_the_network_are_counted() {
        let mut windows = record("node5", &["10.244.5.0/24"], &["10.200.0.5"]);
        windows.operating_system = Some("windows".into());
        let mut linux = record("node4", &["10.244.4.0/24"], &["10.200.0.4"]);
        linux.operating_system = Some("linux".into());
        let records = [
            record("node1", &["10.244.1.0/24"], &["10.200.0.1"]),
            record("node2", &[], &["10.200.0.2"]),
            record("node3", &["10.244.3.0/24"], &[]),
            linux,
            windows,
        ];
        check(&records, Some("node1"), &["node4"], &[]);
        let skipped = Cluster::from_records(&records, "node1", &[]).0.skipped;
        let reasons = ["node2", "node3", "node5"].map(|name| skipped[name].name());
        assert_eq!(reasons, ["no-pod-cidr", "no-internal-ip", "other-operating-system"]);
    }

    #[test]
    fn what_this_node_lacks_itself_is_said() {
        let waiting = "this node, node1, ";
        check(
            &[record("node1", &[], &["10.200.0.1"])],
            None,
            &[],
            &[&format!("{waiting}has no network in spec.podCIDRs")],
        );
        check(
            &[record("node1", &["10.244.1.0/24"], &[])],
            None,
            &[],
            &[&format!("{waiting}has no address of type InternalIP")],
        );
        let mut other = record("node1", &["10.244.1.0/24"], &["10.200.0.1"]);
        other.operating_system = Some("windows".into());
        check(&[other], None, &[], &[&format!("{waiting}runs another operating system")]);
    }

    #[test]
    fn of_two_overlapping_pod_cidrs_one_is_skipped() {
        let records = [
            record("node3", &["10.244.0.0/16"], &["10.200.0.3"]),
            record("node1", &["10.244.1.0/24"], &["10.200.0.1"]),
            record("node2", &["10.244.1.128/25"], &["10.200.0.2"]),
        ];
        let messages = [
            "node node2 is skipped: its podCIDR 10.244.1.128/25 overlaps 10.244.1.0/24 of node node1",
            "node node3 is skipped: its podCIDR 10.244.0.0/16 overlaps 10.244.1.0/24 of node node1",
        ];
        check(&records, Some("node1"), &[], &messages);
    }

    #[test]
    fn of_two_nodes_with_one_address_the_later_named_is_skipped() {
        let records = [
            record("node1", &["10.244.1.0/24"], &["10.200.0.1"]),
            record("node2", &["10.244.2.0/24"], &["10.200.0.1"]),
        ];
        check(
            &records,
            Some("node1"),
            &[],
            &["node node2 is skipped: its InternalIP 10.200.0.1 is node node1's"],
        );
    }

    #[test]
    fn younger_address_and_older_network_are_used() {
        let made = |mut record: NodeRecord, created: &str| {
            record.created = Some(created.into());
            record
        };
        let (old, new) = ("2026-11-01T10:00:00Z", "2026-11-02T09:00:00Z");
        let records = [
            made(record("node1", &["10.244.1.0/24"], &["10.200.0.1"]), old),
            made(record("a-gone", &["10.244.2.0/24"], &["10.200.0.2"]), old),
            made(record("successor", &["10.244.3.0/24"], &["10.200.0.2"]), new),
            made(record("a-newcomer", &["10.244.0.0/16"], &["10.200.0.9"]), new),
        ];
        let messages = [
            "node a-gone is skipped: its InternalIP 10.200.0.2 is node successor's as well",
            "node a-newcomer is skipped: its podCIDR 10.244.0.0/16 overlaps",
        ];
        check(&records, Some("node1"), &["successor"], &messages);
    }

    #[test]
    fn pod_cidr_over_this_nodes_own_network_is_not_used() {
        let own = record("node1", &["10.244.1.0/24"], &["10.200.0.1"]);
        for (network, message) in [
            ("10.200.0.0/24", "its podCIDR 10.200.0.0/24 contains 10.200.0.0/24"),
            ("10.200.0.0/28", "contains 10.200.0.1/32"),
            ("10.0.0.0/8", "its podCIDR 10.0.0.0/8 contains 10.200.0.0/24"),
            ("127.0.0.0/24", "cannot be a pod network"),
            ("224.1.0.0/24", "cannot be a pod network"),
            ("169.254.3.0/24", "cannot be a pod network"),
            ("0.0.0.0/8", "cannot be a pod network"),
            ("64.0.0.0/2", "cannot be a pod network"),
        ] {
            let records = [own.clone(), record("node2", &[network], &["10.200.0.2"])];
            check(&records, Some("node1"), &[], &[message]);
        }
    }

    #[test]
    fn a_list_without_this_node_says_so() {
        let records = [record("node2", &["10.244.2.0/24"], &["10.200.0.2"])];
        check(&records, None, &["node2"], &["this node, node1, is not in the node list"]);
    }

    #[test]
    fn dual_stack_node_keeps_the_order_of_its_object() {
        let addresses = ["fd00::1", "10.200.0.1", "fe80::1", "fd00::1", "fd00::2"];
        for (networks, expected) in [
            (&["fd00:244:1::/64", "10.244.1.0/24"][..], &["fd00:244:1::/64", "10.244.1.0/24"][..]),
            (&["10.244.1.0/24", "fd00:244:1::/64"], &["10.244.1.0/24", "fd00:244:1::/64"]),
            (&["fd00:244:1::/64"], &["fd00:244:1::/64"]),
            (&["10.244.1.0/24", "10.244.9.0/24"], &["10.244.1.0/24"]),
        ] {
            let records = [record("node1", networks, &addresses)];
            let (cluster, problems) = Cluster::from_records(&records, "node1", &[]);
            let own = cluster.own.unwrap();
            let found: Vec<_> = own.pod_networks.iter().map(ToString::to_string).collect();
            assert_eq!((found, problems), (expected.iter().map(ToString::to_string).collect(), vec![]));
            let found: Vec<_> = own.addresses().map(|address| address.to_string()).collect();
            assert_eq!(found, ["fd00::1", "10.200.0.1", "fd00::2"]);
        }
    }

    #[test]
    fn families_that_a_node_lacks_are_said() {
        let dual = record("node2", &["10.244.2.0/24", "fd00:244:2::/64"], &["10.200.0.2"]);
        let own = record("node1", &["10.244.1.0/24"], &["10.200.0.1", "fd00::1"]);
        let records = [own, dual];
        check(
            &records,
            Some("node1"),
            &["node2"],
            &["this node, node1, has no IPv6 podCIDR, but node node2"],
        );
        let remote = Cluster::from_records(&records, "node1", &[]).0.remote;
        let problems = without_next_hop(remote.values());
        assert!(problems.len() == 1 && problems[0].to_string().contains("node2 has the podCIDR fd00:244:2"));
    }

    #[test]
    fn each_pod_cidr_of_a_node_is_checked() {
        let own = record("node1", &["10.244.1.0/24", "fd00:244:1::/64"], &["10.200.0.1"]);
        for (network, message) in [
            ("fd00:244:1::/112", "its podCIDR fd00:244:1::/112 overlaps fd00:244:1::/64 of node node1"),
            ("::ffff:10.9.0.0/112", "cannot be a pod network"),
            ("fe80::/64", "cannot be a pod network"),
            ("ff02::/64", "cannot be a pod network"),
        ] {
            let records = [own.clone(), record("node2", &["10.244.2.0/24", network], &["10.200.0.2"])];
            check(&records, Some("node1"), &[], &[message]);
        }
    }

    #[test]
    fn a_name_that_is_listed_twice_counts_once() {
        let records = [
            record("node1", &["10.244.1.0/24"], &["10.200.0.1"]),
            record("node1", &["10.244.9.0/24"], &["10.200.0.9"]),
        ];
        check(&records, Some("node1"), &[], &["node node1 is listed more than once"]);
    }

    proptest! {
        #[test]
        fn accepted_pod_cidrs_never_overlap(entries in prop::collection::vec((0u8..4, 20u8..=28), 1..30)) {
            let records: Vec<_> = entries
                .iter()
                .enumerate()
                .map(|(index, (third, length))| {
                    let network = format!("10.244.{third}.{}/{length}", index * 8 % 256);
                    record(&format!("node{index}"), &[&network], &[&format!("10.200.0.{index}")])
                })
                .collect();
            let (cluster, problems) = Cluster::from_records(&records, "node0", &[]);
            let networks: Vec<_> = cluster.own.iter().chain(cluster.remote.values()).flat_map(|node| node.pod_networks.clone()).collect();
            for (index, one) in networks.iter().enumerate() {
                for other in &networks[..index] {
                    prop_assert!(!one.contains(&other.network()) && !other.contains(&one.network()), "{} {}", one, other);
                }
            }
            prop_assert_eq!(networks.len() + problems.len(), records.len());
        }
    }
}
