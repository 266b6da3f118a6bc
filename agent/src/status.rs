//! The state of a node's pod network, as `podwire status` shows it. The fields are stable: scripts
//! read them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::packet_record::Link;

/// The state of a node's pod network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The running agent. None: no agent answers, and the rest comes from the pinned tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    /// The kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// What the options and the cluster decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modes: Option<Modes>,
    /// Links of the host with a role.
    pub links: Vec<NodeLink>,
    /// The nodes of the cluster.
    pub nodes: Nodes,
    /// Number of pods of this node with a network.
    pub endpoints: usize,
    /// The podCIDRs of this node.
    pub addresses: Vec<Pool>,
    /// The tables of the programs. The command counts them.
    #[serde(default)]
    pub tables: Vec<Table>,
    /// The holders that have the most entries in a table with shares. The command reads them.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Packets that the programs have dropped, by reason.
    pub drops: Vec<Drops>,
    /// What is not well.
    pub conditions: Vec<Condition>,
}

/// A running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Its release.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// When it started (RFC 3339, UTC).
    pub started: Timestamp,
    /// Whether `/readyz` says that it is ready.
    pub ready: bool,
}

/// The kernel, and what it offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` prints it.
    pub release: String,
    /// What Podwire uses if the kernel has it, by name.
    pub offers: BTreeMap<String, bool>,
}

/// What the options and the cluster decide.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// `vxlan` or `direct`.
    pub mode: String,
    /// Families of the pods' addresses, in the order of the Node object.
    pub families: Vec<String>,
    /// The preferred family of the tunnel. None in direct mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel_family: Option<String>,
    /// UDP port of the tunnel. None in direct mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vxlan_port: Option<u16>,
    /// MTU of new pods, bytes. None while no uplink is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_mtu: Option<u32>,
}

/// A link of the host with a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLink {
    /// The link.
    #[serde(flatten)]
    pub link: Link,
    /// `uplink`, `side`, `inner` or `overlay`.
    pub role: String,
    /// How programs are attached: `tcx`, `tc-filter` or `none`.
    pub programs: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// MTU, bytes of IP packet.
    pub mtu: u32,
}

/// The nodes of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// Number of nodes in the pod network, this one included.
    pub used: usize,
    /// Number of nodes without a part in the pod network, by reason.
    pub skipped: BTreeMap<String, usize>,
    /// Where the agent has them from. None: no agent answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Seconds since the list was last known to be current. None: no agent answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<u64>,
}

/// The addresses of a podCIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The podCIDR.
    pub network: IpNet,
    /// Addresses that pods, and other plugins' pods, have.
    pub used: u32,
    /// Addresses that a pod can get.
    pub free: u32,
}

/// A table of the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Name of the map.
    pub table: String,
    /// Its entries.
    pub entries: usize,
    /// The most that fit.
    pub max_entries: usize,
}

/// What a holder has of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Name of the map.
    pub table: String,
    /// The pod, hostPort or node.
    pub holder: String,
    /// Its entries.
    pub entries: u32,
    /// Free entries of the table: a holder may have as many as are free.
    pub free: u32,
}

/// Dropped packets of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Name of the reason.
    pub reason: String,
    /// Packets since the tables were made.
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets of the last minute. None: no agent answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_minute: Option<u64>,
}

/// A condition that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// Its name.
    pub condition: String,
    /// What does not work: `cut-off`, `data-path`, `no-adds`, `waiting`, `adds-fail`,
    /// `unannounced` or `degraded`.
    pub severity: String,
    /// The pod, node, link or file that has it; empty if there is only one.
    pub subject: String,
    /// What is wrong.
    pub sentence: String,
    /// What to do.
    pub remedy: String,
}
