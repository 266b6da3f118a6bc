//! State that the components share: the model, the executor of its plans, and the conditions.

use std::collections::BTreeMap;
use std::sync::Arc;

use podwire_core::host::Host;
use podwire_core::model::Model;

use super::executor::Executor;
use crate::conditions::Conditions;
use crate::config::Config;
use crate::durations::Durations;
use crate::events::Repair;

/// The shared state, lent to a component while it works. Plain data: the components and
/// `podwire-core` make the decisions.
pub(super) struct State {
    pub(super) config: Config,
    pub(super) model: Model,
    pub(super) executor: Executor,
    pub(super) conditions: Conditions,
    /// The last snapshot of the kernel's devices, addresses and routes.
    pub(super) host: Arc<Host>,
    /// MTU of new pods, in bytes: `--mtu`, or what fits the paths to all nodes. An ADD reads it
    /// here, because there are too many paths to compare for each ADD.
    pub(super) pod_mtu: Option<u32>,
    /// Numbers of repairs: what others had changed and the agent put back.
    pub(super) repairs: BTreeMap<Repair, u64>,
    /// How long the agent's work took.
    pub(super) durations: Durations,
    /// Whether a complete and current node list was seen. Before that, unwanted routes, map entries
    /// and pods' devices without an owner stay.
    pub(super) is_complete: bool,
    /// Whether the services are known. Before that, their entries in the tables stay: an earlier
    /// agent has written them.
    pub(super) has_services: bool,
}

impl State {
    /// Counts repairs of what others had changed.
    pub(super) fn count_repairs(&mut self, what: Repair, count: u64) {
        *self.repairs.entry(what).or_default() += count;
    }
}
