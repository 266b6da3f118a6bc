//! Applies node lists.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use podwire_core::cluster::changes::{Change, changes};
use podwire_core::cluster::{
    Cluster, NodeList, NodeProblem, Skipped, flannel, without_common_family, without_next_hop,
};
use podwire_core::features::{Scope, desired};
use podwire_core::ipam::IpamError;
use podwire_core::model::{Endpoint, Mode, Model, Node};
use podwire_core::plan::{Removals, plan};
use tracing::{debug, error, info};

use super::host::Upkeep;
use super::host::links::renew_paths;
use super::pods::Pods;
use super::state::State;
use crate::conditions::ConditionName;

/// Number of changes of one list that are logged one by one at level info.
const TOLD: usize = 10;

/// The state of the node list: whether it is current, and which nodes have no part in the network.
#[derive(Debug, Default)]
pub(super) struct NodeLists {
    /// When the node list began to be doubtful, and its age at that time. `None`: the list is
    /// current, as far as is known.
    doubtful: Option<(Instant, Duration)>,
    /// Nodes that have no part in the pod network.
    skipped: BTreeMap<String, Skipped>,
    /// Whether this node is about to go.
    is_leaving: bool,
}

impl NodeLists {
    /// Returns for how long the list may have been out of date. Zero: it is current.
    pub(super) fn age(&self) -> Duration {
        self.doubtful.map_or(Duration::ZERO, |(since, age)| since.elapsed() + age)
    }

    /// Returns the number of nodes without a part in the pod network, by reason.
    pub(super) fn skipped(&self) -> BTreeMap<Skipped, usize> {
        self.skipped.values().fold(BTreeMap::new(), |mut counts, reason| {
            *counts.entry(*reason).or_default() += 1;
            counts
        })
    }

    /// Returns whether this node is about to go, according to the last list with an entry for it.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Notes that no list can be read or used, with the reason.
    pub(super) fn do_without(&mut self, state: &mut State, reason: String) {
        self.doubt(Duration::ZERO);
        if state.model.own.is_some() {
            let why = format!("{reason}; the last good state stays");
            state.conditions.set(ConditionName::NodeListStale, why);
        } else {
            state.conditions.set(ConditionName::NodeListUnread, reason);
        }
    }

    /// Notes that the last complete node list is current.
    pub(super) fn confirm(&mut self, state: &mut State) {
        self.doubtful = None;
        state.conditions.clear(ConditionName::NodeListStale);
        state.conditions.clear(ConditionName::NodeListUnread);
    }

    /// Notes that the list was last known to be current `age` ago. An older note stays.
    fn doubt(&mut self, age: Duration) {
        if self.doubtful.is_none() || age > self.age() {
            self.doubtful = Some((Instant::now(), age));
        }
    }

    /// Notes that the list is the last good one, of this age.
    fn distrust(&mut self, state: &mut State, age: Duration) {
        self.doubt(age);
        let unread = state.conditions.of(ConditionName::NodeListUnread).next();
        let why = unread.map_or("the node list may be out of date", |unread| unread.sentence);
        let why = format!("{why}; the last good node list is used");
        state.conditions.set(ConditionName::NodeListStale, why);
        state.conditions.clear(ConditionName::NodeListUnread);
    }

    /// Takes a whole list, and makes the kernel hold what follows from it. Returns whether the kernel
    /// now holds all of it.
    pub(super) async fn take(
        &mut self,
        state: &mut State,
        upkeep: &mut Upkeep,
        pods: &mut Pods,
        list: NodeList,
    ) -> bool {
        let own_name = state.config.node_name.clone();
        let own_record = list.records.iter().find(|record| record.name == own_name);
        // Without an entry for this node, the list says nothing about these.
        if let Some(own) = own_record {
            state.model.zone.clone_from(&own.zone);
            self.is_leaving = own.is_leaving;
        }
        let underlay = state.host.underlay(own_record.map_or(&[][..], |own| &own.internal_addresses));
        let (mut cluster, mut problems) = Cluster::from_records(&list.records, &own_name, &underlay);
        for problem in &list.problems {
            if let Some(name) = problem.malformed() {
                cluster.skipped.insert(name.to_owned(), Skipped::Malformed);
            }
        }
        if list.problems.iter().any(|problem| problem.concerns(&own_name)) {
            problems.retain(|problem| !matches!(problem, NodeProblem::OwnMissing { .. }));
        }
        let of_flannel = flannel::problems(&list.records, state.config.mode, state.config.vni);
        let of_families = match (state.config.mode, &cluster.own) {
            (Mode::Direct, own) => without_next_hop(own.iter().chain(cluster.remote.values())),
            (Mode::Vxlan, Some(own)) => without_common_family(own, cluster.remote.values()),
            (Mode::Vxlan, None) => Vec::new(),
        };
        let problems: Vec<_> =
            list.problems.into_iter().chain(problems).chain(of_flannel).chain(of_families).collect();
        let own_problem = problems.iter().find(|problem| problem.concerns(&own_name)).cloned();
        let own_missing = cluster.own.is_none().then(|| {
            let list = state.config.node_source();
            let why = own_problem.as_ref().map(ToString::to_string);
            why.unwrap_or_else(|| format!("node {own_name} has no usable entry in {list}"))
        });
        // Report this problem only once, as the condition `OwnNodeMissing`.
        let is_said = |problem: &NodeProblem| own_missing.is_some() && own_problem.as_ref() == Some(problem);
        let problems = problems.iter().filter(|problem| !is_said(problem)).map(ToString::to_string);
        state
            .conditions
            .replace(ConditionName::NodeProblem, problems.map(|problem| (problem.clone(), problem)));
        state.conditions.update(ConditionName::OwnNodeMissing, own_missing);
        for (name, reason) in &cluster.skipped {
            if self.skipped.get(name) != Some(reason) {
                debug!(node = name, reason = reason.name(), "the node has no part in the pod network");
            }
        }
        self.skipped = cluster.skipped;
        if list.age.is_zero() {
            self.confirm(state);
        } else {
            self.distrust(state, list.age);
        }
        let had_list = state.model.own.is_some();
        let mut remote = cluster.remote;
        let own_changed = cluster.own.is_some() && cluster.own != state.model.own;
        match (cluster.own, &state.model.own) {
            (Some(own), _) => state.model.own = Some(own),
            // The list has no usable entry for this node now. This node's pods keep their network
            // by the previous entry, even if another node claims it. A list without this node may
            // be wrong as a whole: it may be empty, or come from another cluster. So the agent also
            // keeps the other nodes that the list lacks, until the list has this node again. It
            // drops those that an entry of the list contradicts.
            (None, Some(before)) => {
                remote.retain(|_, node| !node.contradicts(before));
                for (name, node) in &state.model.remote {
                    let contradicts = |other: &Node| node.contradicts(other);
                    if !remote.contains_key(name) && !remote.values().any(contradicts) {
                        remote.insert(name.clone(), node.clone());
                    }
                }
            }
            (None, None) => {
                state.model.remote = remote;
                return false;
            }
        }
        let is_first = !state.is_complete;
        state.is_complete |= list.age.is_zero();
        let before = std::mem::replace(&mut state.model.remote, remote);
        let changed = changes(&before, &state.model.remote);
        if had_list {
            self.tell(&changed);
        }
        let concerns_services = !state.model.services.is_empty() && places_differ(&changed);
        adopt_pod_networks(state);
        // If the kernel did not hold what was wanted before, or if this node is concerned, compare
        // everything that the kernel has.
        let is_small = !is_first
            && !concerns_services
            && !own_changed
            && upkeep.is_settled()
            && !state.conditions.holds(ConditionName::OwnNodeMissing);
        let mut is_applied = is_small && apply_changes(state, upkeep, &before).await;
        if !is_applied {
            upkeep.ask_paths_again();
            is_applied = upkeep.reconcile(state, pods).await;
        }
        if is_applied {
            info!(nodes = state.model.remote.len() + 1, "node list applied");
        }
        is_applied
    }

    fn tell(&self, changes: &[Change<'_>]) {
        let say = |change: &Change<'_>| match (change.now, self.skipped.get(change.name())) {
            (None, Some(reason)) => format!("{change} ({})", reason.name()),
            _ => change.to_string(),
        };
        for change in changes.iter().take(TOLD) {
            info!("{}", say(change));
        }
        for change in changes.iter().skip(TOLD) {
            debug!("{}", say(change));
        }
        if let Some(more @ 1..) = changes.len().checked_sub(TOLD) {
            info!(more, "more nodes have changed; --log-level debug names them");
        }
    }
}

/// Returns whether a node has other podCIDRs or addresses. They decide which backends of services are
/// inside the cluster.
fn places_differ(changes: &[Change<'_>]) -> bool {
    let places = |node: Option<&Node>| -> Option<(Vec<_>, Vec<_>)> {
        node.map(|node| (node.pod_networks.clone(), node.addresses().collect()))
    };
    changes.iter().any(|change| places(change.before) != places(change.now))
}

/// Applies only what the changed nodes require. The kernel must hold what was wanted before the
/// change. Returns `false` if everything must be compared.
async fn apply_changes(state: &mut State, upkeep: &mut Upkeep, before: &BTreeMap<String, Node>) -> bool {
    let changed = changes(before, &state.model.remote);
    let old: Vec<Node> = changed.iter().filter_map(|change| change.before.cloned()).collect();
    let new: Vec<Node> = changed.iter().filter_map(|change| change.now.cloned()).collect();
    let of = |model: &Model, nodes: &[Node]| desired(model, Scope::Nodes(&nodes.iter().collect::<Vec<_>>()));
    // This node also has an address of the changed node, or of the changed node's podCIDR. The
    // change decides whether `NODES` lists this address as this node's own.
    let is_ours = |node: &Node| {
        state
            .model
            .other_addresses
            .iter()
            .any(|address| node.addresses().any(|of_node| of_node == *address) || node.has_pod(*address))
    };
    if old.iter().chain(&new).any(is_ours) {
        return false;
    }
    let mut reached = of(&state.model, &old);
    let by_uplinks = renew_paths(state, &old, &new).await;
    if !by_uplinks || state.model.pod_mtu() != state.pod_mtu {
        return false;
    }
    let ops = plan(&of(&state.model, &new), &reached, Removals::Allowed);
    let done = state.executor.run_all(ops, &mut reached).await;
    if let Err(error) = &done {
        error!("could not apply the changes of {} nodes: {error}", old.len().max(new.len()));
        upkeep.unsettle();
    }
    done.is_ok()
}

/// Hands out addresses from the current podCIDRs. Addresses of earlier ones stay with their pods.
fn adopt_pod_networks(state: &mut State) {
    let Some(own) = &state.model.own else {
        return;
    };
    let taken = state.model.endpoints.values().flat_map(Endpoint::addresses).collect();
    let store = &state.executor.store;
    if !state.executor.pools.adopt(&own.pod_networks, &taken, |family| store.last_address(family)) {
        return;
    }
    let networks: Vec<_> = own.pod_networks.iter().map(ToString::to_string).collect();
    let networks = networks.join(" and ");
    info!(networks, "new pods get addresses from this node's podCIDRs");
    let no_room = match state.executor.pools.has_free() {
        Err(error @ IpamError::NoRoom(_)) => Some(error.to_string()),
        _ => None,
    };
    state.conditions.update(ConditionName::NoRoomForPods, no_room);
    let outside = state.model.outside_pod_networks().map(|pod| {
        let why = format!("{pod} has an address outside the node's podCIDR {networks}: the pod keeps the address, but other nodes drop its packets");
        (pod.host_interface.clone(), why)
    });
    let outside: Vec<_> = outside.collect();
    state.conditions.replace(ConditionName::PodsOutsidePodCidr, outside);
}
