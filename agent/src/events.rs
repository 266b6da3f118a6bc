//! What the sources have to say, and what is asked of the owner of state. Sources send events, the daemon takes them;
//! neither knows the other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use podwire_cni::protocol::{Call, Reply};
use podwire_core::cluster::{NodeList, Skipped};
use tokio::sync::oneshot;

use crate::conditions::{ConditionName, Conditions};
use crate::dataplane::flows::Collected;
use crate::dataplane::maps::Counters;

/// What the sources have to say.
#[derive(Debug)]
pub enum Event {
    /// The plugin asks for something.
    Call {
        /// What.
        call: Box<Call>,
        /// Where the answer goes.
        reply: oneshot::Sender<Reply>,
    },
    /// A complete node list.
    Nodes(NodeList),
    /// The node list cannot be had, or used as a whole; why.
    NodeListUnusable(String),
    /// The last complete node list is that of now again.
    NodeListConfirmed,
    /// The networks of `--non-masquerade-file`, or why they cannot be used.
    NonMasquerade(Result<BTreeSet<IpNet>, String>),
    /// What of the file of `--config` the agent does not run with, or what is wrong with it.
    ConfigFile(Result<Unheeded, String>),
    /// Time to compare the kernel with what is wanted.
    Tick,
    /// Others have changed a link, an address or a route.
    LinksChanged,
    /// The tables were aged out.
    Collected(Collected),
    /// Somebody wants to know whether events are served at all.
    Alive(oneshot::Sender<()>),
    /// Somebody wants to see all that is wrong.
    Conditions(oneshot::Sender<Conditions>),
    /// Somebody wants to see figures.
    Figures(oneshot::Sender<Figures>),
    /// Time to end, with the data path left in place.
    Stop,
}

/// Whether the agent does what it is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// No, and why.
    Waiting(String),
}

/// What others change on a node and the agent puts back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Repair {
    /// A queueing discipline in the place of clsact was removed.
    Discipline,
    /// The name of a pod's link.
    LinkName,
    /// A pod's link was down, or had another MTU.
    Link,
    /// The limit of what a pod receives.
    LinkLimit,
    /// Pins of maps and links.
    Pin,
    /// The state folder.
    StateFolder,
    /// The runtime's network configuration.
    CniConfiguration,
}

impl Repair {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Discipline,
        Self::LinkName,
        Self::Link,
        Self::LinkLimit,
        Self::Pin,
        Self::StateFolder,
        Self::CniConfiguration,
    ];

    /// As metrics have it.
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

/// Figures for operators.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What the programs counted.
    pub counters: Counters,
    /// Pods of this node.
    pub endpoints: usize,
    /// Nodes that can be used, this one included.
    pub nodes: usize,
    /// Nodes that have no part in the pod network.
    pub skipped: BTreeMap<Skipped, usize>,
    /// Since when the node list may be out of date; zero: it is not.
    pub node_list_age: Duration,
    /// Addresses that can be handed out at all.
    pub addresses: u32,
    /// What the last round of ageing found in the tables.
    pub collected: Collected,
    /// Programs that something else had removed or replaced, and that were attached again.
    pub reattached: u64,
    /// What else others had changed on the node, and was put back.
    pub repairs: BTreeMap<Repair, u64>,
    /// Kernel switches that something else had changed, and that were set again.
    pub switches_set_again: u64,
    /// Operations by which maps and routes were changed.
    pub operations: u64,
    /// What is wrong, and for how many subjects.
    pub conditions: Vec<(ConditionName, usize)>,
    /// Where the host's firewall may drop pods' packets.
    pub forward_policy_drops: Vec<String>,
    /// Whether the agent's network configuration is the one that the runtime takes; `None`: it writes none.
    pub cni_configuration_first: Option<bool>,
}

/// The options of a file that the agent does not run with.
#[derive(Debug, PartialEq, Eq)]
pub struct Unheeded {
    /// Those that were otherwise when the agent was started.
    pub changed: Vec<String>,
    /// Those that the command line or the environment gives otherwise.
    pub overridden: Vec<String>,
}
