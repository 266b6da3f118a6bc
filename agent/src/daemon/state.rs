//! What the components share: the model, what carries out its plans, and everything that is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use podwire_core::host::Host;
use podwire_core::model::Model;

use super::executor::Executor;
use crate::conditions::Conditions;
use crate::config::Config;
use crate::events::Repair;

/// Handed to a component for as long as it works. Plain data: decisions are made by the components and by `podwire-core`.
pub(super) struct State {
    pub(super) config: Config,
    pub(super) model: Model,
    pub(super) executor: Executor,
    pub(super) conditions: Conditions,
    /// The last look at the kernel's devices, addresses and routes.
    pub(super) host: Arc<Host>,
    /// Of new pods, bytes: what the ways to all the nodes leave, which are many.
    pub(super) pod_mtu: Option<u32>,
    /// What others had changed and was put back.
    pub(super) repairs: BTreeMap<Repair, u64>,
    /// Whether a complete node list of now was seen: nothing is removed before.
    pub(super) is_complete: bool,
}

impl State {
    /// What others had changed is as it was again.
    pub(super) fn count_repairs(&mut self, what: Repair, count: u64) {
        *self.repairs.entry(what).or_default() += count;
    }
}
