//! Kernel switches that pods depend on and that others change. The agent sets them again every ten
//! seconds.

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::Role;
use tracing::warn;

use super::Upkeep;
use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::error::Error;
use crate::sysctl::Switch;

impl Upkeep {
    /// Sets switches again. If one cannot be set, the agent is not ready, and says why.
    pub(in crate::daemon) fn look_after_switches(&mut self, state: &mut State) {
        let mut set = Vec::new();
        let outcome = set_switches(state, &mut set);
        if !set.is_empty() {
            self.switches_set_again += set.len() as u64;
            warn!(
                switches = set.join(", "),
                "kernel switches set again: another tool changed them, but pods' traffic needs them; find that tool (sysctl.d, networkd, a container engine) and make it leave them alone"
            );
        }
        let unswitched = outcome.err().map(|error| {
            format!("the agent cannot set a kernel switch that pods need; while forwarding is off, pods are cut off from services and the world: {error}")
        });
        if state.conditions.update(ConditionName::Switches, unswitched) {
            self.settled = None;
        }
    }
}

/// Sets the node-wide switch first, because the kernel sets those of all devices with it.
fn set_switches(state: &State, set: &mut Vec<String>) -> Result<(), Error> {
    let (switches, state_dir) = (&state.executor.switches, &state.config.places.state_dir);
    if switches.enable_forwarding(state_dir)? {
        set.push("ip_forward".into());
    }
    // The tool that made an inner link also sets its forwarding.
    for link in state.model.links.iter().filter(|link| link.role != Role::Inner) {
        if switches.enable_forwarding_of(&link.name, state_dir)? {
            set.push(format!("forwarding of {}", link.name));
        }
    }
    let pods = state.model.endpoints.values().map(|pod| Switch::forwarding(&pod.host_interface));
    let tunnel = state.model.vxlan.map(|_| Switch::of_tunnel(VXLAN_DEVICE));
    for switch in tunnel.into_iter().flatten().chain(pods) {
        if switches.put_right(&switch)? {
            set.push(switch.to_string());
        }
    }
    Ok(())
}
