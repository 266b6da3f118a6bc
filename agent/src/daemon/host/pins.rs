//! Puts back what others remove: links, pins, and the queueing discipline that filters need.

use podwire_common::names::programs;
use podwire_core::slice::Hooks;
use tracing::{error, warn};

use super::Upkeep;
use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::dataplane::{DataplaneError, pins};
use crate::error::Error;
use crate::events::Repair;
use crate::links::Displaced;

impl Upkeep {
    /// Looks for losses that the kernel does not report: links that others have detached, and pins
    /// that others have removed. Asks the kernel a few questions, whatever the number of pods.
    pub(in crate::daemon) async fn look_after_links_and_pins(&mut self, state: &mut State) {
        let lost = state.executor.dataplane.take_lost_links().unwrap_or_else(|error| {
            error!("{error}");
            Vec::new()
        });
        for lost in &lost {
            let is_of_link = !programs::CGROUP.contains(&lost.program.as_str());
            // The kernel detached it together with its device.
            if is_of_link && matches!(state.executor.links.device(&lost.place).await, Ok(None)) {
                continue;
            }
            self.count_reattached(&lost.place, &lost.program, &lost.found);
            if is_of_link {
                // The next reconciliation attaches what is missing. An unset `settled` makes it due.
                self.attached.retain(|_, (programs, _)| programs.device != lost.place);
                self.settled = None;
            }
        }
        if lost.iter().any(|lost| programs::CGROUP.contains(&lost.program.as_str())) {
            self.attach_host_processes(state);
        }
        self.look_after_pins(state);
    }

    pub(super) fn look_after_pins(&mut self, state: &mut State) {
        let repaired = self.repair_pins(state);
        let folder = state.config.places.bpf_dir.display();
        let unpinned = match repaired {
            Ok(missing) if missing.is_empty() => None,
            Ok(missing) => {
                let count = missing.len() as u64;
                *state.repairs.entry(Repair::Pin).or_default() += count;
                warn!(
                    missing = missing.join(", "),
                    "another tool removed pins from {folder}: the agent pinned the maps and links again, and the maps kept their entries"
                );
                None
            }
            Err(error) => Some(format!(
                "pins are missing from {folder}, and the agent cannot make them again; pods lose their network when this agent ends: {error}"
            )),
        };
        if state.conditions.update(ConditionName::PinsMissing, unpinned) {
            self.settled = None;
        }
    }

    /// Locks the folder of pins again if another tool has removed it, and pins what is missing.
    /// Returns what was missing.
    fn repair_pins(&mut self, state: &State) -> Result<Vec<String>, DataplaneError> {
        if !self.bpf_lock.is_there() {
            self.bpf_lock = pins::hold(&state.config.places.bpf_dir)?;
        }
        state.executor.dataplane.repair_pins()
    }

    pub(super) fn count_reattached(&mut self, device: &str, program: &str, found: &str) {
        self.reattached += 1;
        warn!(device, program, found, "program attached again: another tool removed or replaced it");
    }
}

/// Removes a queueing discipline that stands in the place of clsact. On a link of the host, a
/// discipline with another tool's filters stays: this sets a condition and returns `false`.
pub(super) async fn make_room(
    state: &mut State,
    hooks: Hooks,
    index: u32,
    name: &str,
) -> Result<bool, Error> {
    let obstructed = match state.model.is_uplink(index) {
        true => ConditionName::UplinkObstructed,
        false => ConditionName::LinkObstructed,
    };
    let of_others = !matches!(hooks, Hooks::Pod | Hooks::Overlay);
    let ours = of_others.then_some(&programs::UPLINK_LINKS[..]);
    match state.executor.links.remove_displacing(index, ours).await? {
        Displaced::No => {}
        Displaced::Removed => {
            warn!(device = name, "removed another tool's queueing discipline from the place of clsact");
            state.count_repairs(Repair::Discipline, 1);
        }
        Displaced::InUse => {
            let why = format!(
                "the link {name} has an `ingress` queueing discipline, or one with shared blocks, which holds filters of another tool: Podwire's programs need clsact in its place. Make that tool use clsact (`tc qdisc add dev {name} clsact`), and run `tc qdisc del dev {name} ingress`"
            );
            state.conditions.set_for(obstructed, name, why);
            return Ok(false);
        }
    }
    state.conditions.clear_for(obstructed, name);
    Ok(true)
}
