//! Makes the kernel hold what the model wants: after each node list, soon after the kernel reports
//! a change, and every two minutes, because others may have changed the maps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::change::Change;
use podwire_core::features::{Scope, desired};
use podwire_core::host::Host;
use podwire_core::plan::{Op, Rank, Removals, plan};
use podwire_core::slice::{Slice, TableChange};
use tracing::{error, info, warn};

use super::Upkeep;
use super::pins::make_room;
use crate::conditions::ConditionName;
use crate::daemon::attempts::Attempts;
use crate::daemon::found::{Displaced, Found};
use crate::daemon::pods::{Pods, look_at_host_addresses};
use crate::daemon::state::State;
use crate::dataplane::attach::UplinkAttachment;
use crate::error::Error;
use crate::events::Repair;
use crate::memory;

/// Age at which the agent asks for the paths again if the kernel has reported any change. A change
/// of policy routing is not in the lists of links, addresses and routes that it compares.
const PATHS_VALID: Duration = Duration::from_secs(60);
/// Age at which the agent compares everything. The kernel reports changes of devices, addresses and
/// routes, but not what others did to the maps.
const SETTLED: Duration = Duration::from_secs(120);

impl Upkeep {
    /// Returns whether there is a reason to compare the kernel with what is wanted.
    pub(in crate::daemon) fn may_differ(&mut self, pods: &Pods) -> bool {
        let changed = self.changes.any();
        self.paths_doubtful |= changed;
        let settled = self.settled.is_some_and(|since| since.elapsed() < SETTLED);
        let strays = pods.has_due_strays();
        changed || !settled || strays || self.paths_doubtful && self.paths_are_old()
    }

    pub(super) fn paths_are_old(&self) -> bool {
        self.paths_asked.is_none_or(|asked| asked.elapsed() > PATHS_VALID)
    }

    /// Compares the kernel with what is wanted, if a route lookup or an IPsec policy may now give
    /// another result. Only then does it wait for the threads that work for pods.
    pub(in crate::daemon) async fn look_at_changes(&mut self, state: &mut State, pods: &mut Pods) {
        if state.model.own.is_none() {
            return;
        }
        match state.executor.links.host().await {
            Ok(host) if !host.routes_differ(&state.host) => {}
            Ok(_) => {
                pods.finish_all_joined(state).await;
                let _ = self.reconcile(state, pods).await;
            }
            Err(error) => error!("{error}"),
        }
    }

    /// Does one round. Failures are logged, and the next round tries again. Returns whether nothing
    /// failed and ADD can be served.
    pub(in crate::daemon) async fn reconcile(&mut self, state: &mut State, pods: &mut Pods) -> bool {
        let begun = Instant::now();
        let failed = self.try_reconcile(state, pods).await.err().map(|error| error.to_string());
        state.durations.note_reconcile(failed.is_none(), begun.elapsed());
        memory::give_back();
        match &failed {
            None => state.conditions.clear(ConditionName::NotSetUp),
            // Nothing was served before, so this failure is the reason why nothing is served now.
            Some(why) if state.model.uplinks().next().is_none() || !self.is_set_up => {
                state.conditions.set(ConditionName::NotSetUp, why);
            }
            Some(_) => {}
        }
        let settled = failed.is_none() && state.conditions.refusal().is_none();
        state.conditions.update(ConditionName::ReconcileFailed, failed);
        self.settled = (settled && pods.has_all_devices()).then(Instant::now);
        settled
    }

    async fn try_reconcile(&mut self, state: &mut State, pods: &mut Pods) -> Result<(), Error> {
        let mut host = state.executor.links.host().await?;
        pods.sweep(state, &host).await;
        if pods.put_names_back(state, &host).await {
            host = state.executor.links.host().await?;
        }
        // Repair pins before programs are loaded again, because they take the pinned maps.
        self.look_after_pins(state);
        let tunnel = host.device(VXLAN_DEVICE).map(|device| device.index);
        if state.model.vxlan.is_some() && state.model.vxlan != tunnel {
            self.rebuild_tunnel(state, pods).await?;
            host = state.executor.links.host().await?;
        }
        state.model.other_addresses = host.own_addresses();
        take_policies(state, &host);
        look_at_host_addresses(state, &host);
        pods.other.look(state, &host).await;
        let has_uplink = self.look_at_links(state, &host).await;
        if has_uplink {
            self.prepare_families(state)?;
        }
        // Attach a link's programs before its entry is written: until then, no pod's packet leaves
        // by the link.
        let attached = if has_uplink { self.attach_links(state).await } else { Ok(()) };
        let put_right = self.put_right(state, &host, has_uplink).await;
        if !has_uplink {
            return put_right;
        }
        if put_right.is_ok() {
            self.detach_links(state, &host).await?;
        }
        state.host = Arc::new(host);
        put_right.and(attached)?;
        state.executor.dataplane.finish_upgrade()?;
        state.executor.dataplane.forget_other_loads()?;
        state.conditions.clear(ConditionName::NotSetUp);
        self.is_set_up = state.conditions.refusal().is_none();
        Ok(())
    }

    /// Makes the kernel hold what is wanted. Without an uplink, restores only the programs of links
    /// that exist.
    async fn put_right(&mut self, state: &mut State, host: &Host, has_uplink: bool) -> Result<(), Error> {
        if self.uplink_attachment == UplinkAttachment::Clsact {
            let names = self.attached.iter().map(|(index, (programs, _))| (*index, programs.device.clone()));
            state.model.filtered_links = names.collect();
        }
        let mut want = desired(&state.model, Scope::All);
        name_as_they_are(&mut want, host);
        let Found { have, displaced, unknown } = state.executor.find(&mut want, host).await?;
        for (_, uplink) in want.programs.iter().filter(|(index, _)| have.programs.contains_key(index)) {
            state.conditions.clear_for(ConditionName::UplinkObstructed, &uplink.device);
            state.conditions.clear_for(ConditionName::LinkObstructed, &uplink.device);
        }
        let removals = if state.is_complete { Removals::Allowed } else { Removals::Withheld };
        let mut attempts = Attempts::default();
        unknown.into_iter().for_each(|error| attempts.note(Err(error)));
        let mut ops = Vec::new();
        let mut planned = plan(&want, &have, removals);
        planned.retain(|op| state.has_services || !op.is_removal() || !is_of_services(op));
        for op in planned {
            let is_possible = match &op {
                Op::Programs(Change { key, now: Some(programs), .. }) => {
                    make_room(state, programs.hooks, *key, &programs.device).await
                }
                _ => Ok(has_uplink),
            };
            match is_possible {
                Ok(true) => ops.push(op),
                Ok(false) => {}
                Err(error) => attempts.note(Err(error)),
            }
        }
        let repairs: Vec<_> = ops.iter().filter(|op| op.rank() < Rank::Table).cloned().collect();
        let mut reached = have;
        attempts.note(state.executor.run_all(ops, &mut reached).await);
        self.tell_repairs(state, &repairs, &displaced, &reached);
        attempts.outcome()
    }

    /// Reports what others had changed and the agent has put back.
    fn tell_repairs(&mut self, state: &mut State, repairs: &[Op], displaced: &[Displaced], reached: &Slice) {
        for displaced in displaced.iter().filter(|lost| reached.programs.contains_key(&lost.index)) {
            self.count_reattached(&displaced.device, displaced.program, &displaced.in_its_place());
        }
        let pod = |index: &u32| state.model.endpoints.values().find(|endpoint| endpoint.ifindex == *index);
        let (mut links, mut limits) = (0, 0);
        for op in repairs {
            match op {
                Op::Link(Change { key, before: Some(before), now })
                    if reached.links.get(key) == now.as_ref() =>
                {
                    if let Some(pod) = pod(key) {
                        let (device, was_up, mtu) = (&before.name, before.up, before.mtu);
                        warn!(%pod, device, was_up, mtu, "set up again: another tool changed the pod's link on the node");
                        links += 1;
                    }
                }
                Op::Queue(Change { key, .. }) if reached.queues.contains_key(key) => {
                    if let Some(pod) = pod(key) {
                        warn!(%pod, "the limit of what the pod receives was missing or different: the agent set it again");
                        limits += 1;
                    }
                }
                _ => {}
            }
        }
        state.count_repairs(Repair::Link, links);
        state.count_repairs(Repair::LinkLimit, limits);
    }
}

fn take_policies(state: &mut State, host: &Host) {
    if state.model.policies == host.policies {
        return;
    }
    let policies = host.policies.len();
    info!(
        policies,
        "the host's IPsec policies changed: packets that they may match take the host stack or the VXLAN device, or are dropped (ipsec-policy)"
    );
    state.model.policies.clone_from(&host.policies);
}

/// Uses the current names of links, because another tool may have renamed them.
fn name_as_they_are(want: &mut Slice, host: &Host) {
    let name = |index: &u32, name: &mut String| *name = host.name_of(*index, name).to_owned();
    want.programs.iter_mut().for_each(|(index, programs)| name(index, &mut programs.device));
    want.queues.iter_mut().for_each(|(index, queue)| name(index, &mut queue.device));
    want.links.iter_mut().for_each(|(index, link)| name(index, &mut link.name));
}

/// Returns whether an operation changes a table of services.
fn is_of_services(op: &Op) -> bool {
    use TableChange::{Backends, Positions, Services, Serving, SourceRanges};
    matches!(op, Op::Table(Services(_) | Serving(_) | Backends(_) | Positions(_) | SourceRanges(_)))
}
