//! The events for the owner of state, and the answers to its callers. Sources send events and the
//! daemon takes them. Neither knows the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use podwire_cni::protocol::{Call, Reply};
use podwire_common::tables::Table;
use podwire_core::cluster::{NodeList, Skipped};
use podwire_core::model::Endpoint;
use podwire_core::services::list::{ServiceChanges, ServiceList};
use podwire_core::services::{HealthCheck, ServiceName};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::conditions::{ConditionName, Conditions};
use crate::dataplane::flows::Collected;
use crate::dataplane::maps::Counters;
use crate::dataplane::packet_events::LostCounts;
use crate::durations::Durations;
use crate::frontends::Snapshot;
use crate::status::Status;

/// An event from a source.
#[derive(Debug)]
pub enum Event {
    /// The plugin sends a request.
    Call {
        /// The request.
        call: Box<Call>,
        /// The channel for the answer.
        reply: oneshot::Sender<Reply>,
    },
    /// A complete node list.
    Nodes(NodeList),
    /// The agent cannot read the node list, or the list as a whole does not decode. The event has
    /// the reason.
    NodeListUnusable(String),
    /// The source of the node list answered again; the last complete list is current.
    NodeListConfirmed,
    /// All services, with the endpoints of each.
    Services(ServiceList),
    /// What has changed since the last event about services.
    ServicesChanged(ServiceChanges),
    /// The agent cannot read the services. The event has the reason.
    ServicesUnusable(String),
    /// The source of the services answered again; what it has sent is current.
    ServicesConfirmed,
    /// The addresses at which the agent cannot answer load balancers' health checks, with the reason
    /// for each. The others are served.
    HealthPorts(BTreeMap<SocketAddr, String>),
    /// The networks of `--non-masquerade-file`, or why they cannot be used.
    NonMasquerade(Result<BTreeSet<IpNet>, String>),
    /// The options in the file of `--config` that the agent does not run with, or what is wrong
    /// with it.
    ConfigFile(Result<Unheeded, String>),
    /// Time for the periodic checks, such as comparing the kernel with the wanted state.
    Tick,
    /// Another program changed a link, an address, a route or an IPsec policy.
    LinksChanged,
    /// The collector has removed expired entries from the tables.
    Collected(Collected),
    /// `/healthz` asks whether the daemon still takes events.
    Alive(oneshot::Sender<()>),
    /// `/readyz?verbose` asks for all conditions that hold.
    Conditions(oneshot::Sender<Conditions>),
    /// `/metrics` asks for the figures.
    Figures(oneshot::Sender<Figures>),
    /// `podwire status` asks for the node's state.
    Status(oneshot::Sender<Box<Status>>),
    /// An operator's client asks for the names of addresses and links.
    Names(oneshot::Sender<Names>),
    /// `podwire services` asks for all services. The answer is `None` if the agent reads none.
    Frontends(oneshot::Sender<Option<Snapshot>>),
    /// Time to stop; the data path stays in place.
    Stop,
}

/// Whether the agent is ready to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The agent is ready.
    Ready,
    /// The agent is not ready, for this reason.
    Waiting(String),
}

/// What load balancers may know of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceHealth {
    /// The health checks of all services that have one.
    pub checks: Arc<BTreeMap<ServiceName, HealthCheck>>,
    /// Whether the agent knows the services, and no condition cuts pods off.
    pub is_healthy: bool,
    /// While it is not: when it last was.
    pub last_healthy: Timestamp,
    /// Whether the node is about to go, so that it should get no new connections.
    pub is_leaving: bool,
}

/// A change by another program that the agent undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// Another queueing discipline was in the place of clsact, and was removed.
    Discipline,
    /// A pod's link had another name.
    LinkName,
    /// A pod's link was down, or had another MTU.
    Link,
    /// The limit on what a pod receives was missing, or had another value.
    LinkLimit,
    /// Pins of maps or links were missing.
    Pin,
    /// The state folder was removed.
    StateFolder,
    /// The runtime's network configuration was removed or changed.
    CniConfiguration,
}

impl Repair {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Discipline,
        Self::LinkName,
        Self::Link,
        Self::LinkLimit,
        Self::Pin,
        Self::StateFolder,
        Self::CniConfiguration,
    ];

    /// Returns the name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discipline => "discipline",
            Self::LinkName => "link-name",
            Self::Link => "link",
            Self::LinkLimit => "link-limit",
            Self::Pin => "pin",
            Self::StateFolder => "state-folder",
            Self::CniConfiguration => "cni-configuration",
        }
    }
}

/// Names of what packets have numbers of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Namespace and name of this node's pods, by address.
    pub pods: BTreeMap<IpAddr, String>,
    /// Names of nodes, by InternalIP.
    pub nodes: BTreeMap<IpAddr, String>,
    /// Names of links with programs, by ifindex. Clients ask the kernel.
    #[serde(skip)]
    pub links: BTreeMap<u32, String>,
}

impl Names {
    /// Adds the names of a pod and its link.
    pub fn add_endpoint(&mut self, endpoint: &Endpoint) {
        self.links.insert(endpoint.ifindex, endpoint.host_interface.clone());
        let Some(pod) = &endpoint.pod else { return };
        let name = format!("{}/{}", pod.namespace, pod.name);
        self.pods.extend(endpoint.addresses().map(|address| (address, name.clone())));
    }

    /// Adds the name of a node.
    pub fn add_node(&mut self, name: &str, internal_addresses: &[IpAddr]) {
        self.nodes.extend(internal_addresses.iter().map(|address| (*address, name.to_owned())));
    }
}

/// Figures for operators.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Packets and bytes that the programs counted.
    pub counters: Counters,
    /// Number of events that the programs could not write.
    pub events_lost: LostCounts,
    /// Number of pods of this node.
    pub endpoints: usize,
    /// Number of nodes that can be used, this one included.
    pub nodes: usize,
    /// Number of nodes that the agent does not use in the pod network, by reason.
    pub skipped: BTreeMap<Skipped, usize>,
    /// Time for which the node list may have been out of date; zero while it is current.
    pub node_list_age: Duration,
    /// Number of services and of their endpoints. `None`: the agent reads no services.
    pub services: Option<(usize, usize)>,
    /// Number of addresses that the podCIDR has for pods, free or not.
    pub addresses: u32,
    /// What the collector found in the tables in its last round.
    pub collected: Collected,
    /// Kernel memory of each table, bytes.
    pub memory: BTreeMap<Table, u64>,
    /// Number of programs that something else had removed or replaced, and that the agent attached
    /// again.
    pub reattached: u64,
    /// Number of other changes that the agent undid, by kind.
    pub repairs: BTreeMap<Repair, u64>,
    /// Number of kernel switches that something else had changed, and that the agent set again.
    pub switches_set_again: u64,
    /// Number of operations that changed maps and routes.
    pub operations: u64,
    /// How long calls, node lists and comparisons with the kernel took.
    pub durations: Durations,
    /// The conditions that hold, and the number of subjects of each.
    pub conditions: Vec<(ConditionName, usize)>,
    /// Places where the host's firewall may drop pods' packets.
    pub forward_policy_drops: Vec<String>,
    /// Whether the runtime takes the agent's network configuration; `None`: the agent writes none.
    pub cni_configuration_first: Option<bool>,
}

/// The options of a file that the agent does not run with.
#[derive(Debug, PartialEq, Eq)]
pub struct Unheeded {
    /// Options that had another value when the agent started.
    pub changed: Vec<String>,
    /// Options that the command line or the environment sets differently.
    pub overridden: Vec<String>,
}
