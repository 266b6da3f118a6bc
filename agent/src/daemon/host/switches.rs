//! Kernel switches that pods depend on and that others change. The agent sets them again every ten
//! seconds.

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::{Family, Role};
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

    /// Sets the switches of the families of the node's pods, when the node's podCIDRs are first
    /// known and when they change.
    pub(super) fn prepare_families(&mut self, state: &State) -> Result<(), Error> {
        let families: Vec<_> = state.model.pod_families().collect();
        if families == self.prepared {
            return Ok(());
        }
        for family in forwarded_families(state) {
            enable_forwarding(state, family)?;
        }
        if state.model.vxlan.is_some() {
            for switch in Switch::of_tunnel(VXLAN_DEVICE, state.model.has_pods_of(Family::V6)) {
                state.executor.switches.put_right(&switch)?;
            }
        }
        self.prepared = families;
        Ok(())
    }
}

/// Sets the node-wide switches first, because the kernel sets those of all devices with them.
fn set_switches(state: &State, set: &mut Vec<String>) -> Result<(), Error> {
    let (switches, state_dir) = (&state.executor.switches, &state.config.places.state_dir);
    let has_ipv6 = state.model.has_pods_of(Family::V6);
    for family in forwarded_families(state) {
        if enable_forwarding(state, family)? {
            set.push(format!("forwarding of {family}"));
        }
        // The tool that made an inner link also sets its forwarding.
        for link in state.model.links.iter().filter(|link| link.role != Role::Inner) {
            if switches.enable_forwarding_of(family, &link.name, state_dir)? {
                set.push(format!("forwarding of {family} of {}", link.name));
            }
        }
    }
    let pods = state
        .model
        .endpoints
        .values()
        .flat_map(|pod| Switch::of_pod(&pod.host_interface, pod.address_of(Family::V6).is_some()));
    let tunnel = state.model.vxlan.map(|_| Switch::of_tunnel(VXLAN_DEVICE, has_ipv6));
    for switch in tunnel.into_iter().flatten().chain(pods) {
        if switches.put_right(&switch)? {
            set.push(switch.to_string());
        }
    }
    Ok(())
}

/// Returns the families that the node forwards: those of its pods, and always IPv4.
fn forwarded_families(state: &State) -> impl Iterator<Item = Family> {
    let has_ipv6 = state.model.has_pods_of(Family::V6);
    Family::ALL.into_iter().filter(move |family| *family == Family::V4 || has_ipv6)
}

fn enable_forwarding(state: &State, family: Family) -> Result<bool, Error> {
    let links = state.model.links.iter().filter(|link| family == Family::V6 && link.role != Role::Inner);
    let learning: Vec<_> = links.map(|link| link.name.as_str()).collect();
    let places = &state.config.places;
    Ok(state.executor.switches.enable_forwarding(family, &learning, &places.state_dir)?)
}
