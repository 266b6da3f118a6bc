//! Loads programs, and puts them in the place of an earlier agent's.

use std::sync::Arc;

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::{Endpoint, Family, Mode};
use tracing::{error, info, warn};

use super::Upkeep;
use crate::conditions::ConditionName;
use crate::config::{Config, ServiceMode};
use crate::daemon::pods::Pods;
use crate::daemon::state::State;
use crate::dataplane::{Dataplane, DataplaneError, load};
use crate::error::Error;
use crate::links::Links;
use crate::sysctl::Switch;

/// Consequence for a node without the programs for its own processes.
pub(in crate::daemon) const NO_HOST_PROCESSES: &str =
    "this node's own processes do not reach pods' hostPorts at the node's addresses, including 127.0.0.1";

impl Upkeep {
    /// Makes the tunnel's device again, and everything that refers to it, after another tool
    /// removed it.
    pub(super) async fn rebuild_tunnel(&mut self, state: &mut State, pods: &mut Pods) -> Result<(), Error> {
        warn!("device {VXLAN_DEVICE} was removed or replaced: the agent makes it again");
        let vxlan = tunnel_device(&state.config, &state.executor.links).await?;
        // The programs know the device by its ifindex, which is written into them at load.
        state.executor.dataplane = load(&state.config, vxlan)?;
        // Update the model only after the load: if the load fails, the next round must try it
        // again. If a later step fails, the next round attaches the programs.
        state.model.vxlan = vxlan;
        self.replace_programs(state, pods).await?;
        self.attached.clear();
        state.host = Arc::new(state.executor.links.host().await?);
        Ok(())
    }

    /// Replaces the programs at all known places. From then on, these programs forward instead of
    /// the programs of an earlier agent.
    pub(in crate::daemon) async fn replace_programs(
        &self,
        state: &mut State,
        pods: &mut Pods,
    ) -> Result<(), Error> {
        state.executor.dataplane.take_over_uplinks()?;
        if state.model.vxlan.is_some() {
            state.executor.dataplane.attach_overlay(VXLAN_DEVICE)?;
        }
        self.attach_host_processes(state);
        let with_device = |pod: &&Endpoint| !state.model.without_device.contains(&pod.attachment);
        let endpoints: Vec<_> = state.model.endpoints.values().filter(with_device).cloned().collect();
        for pod in endpoints {
            let host = Arc::clone(&state.host);
            let device = host.name_of(pod.ifindex, &pod.host_interface);
            if let Err(error) = state.executor.dataplane.attach_pod(device) {
                // A plugin has removed the pod's link in the meantime: on a DEL it does so without
                // an agent, too. The other pods must still get their programs.
                if state.executor.is_gone(pod.ifindex, device).await? {
                    pods.miss(state, pod.attachment);
                } else {
                    // The pod keeps the programs that it has. The next look at the kernel tries
                    // again.
                    error!(%pod, "{error}");
                }
            }
        }
        Ok(())
    }

    /// Attaches the programs for the node's own processes. Pods do not need them, so a failure is
    /// only reported.
    pub(super) fn attach_host_processes(&self, state: &mut State) {
        if let Some(cgroup) = &self.cgroup {
            let has_services = state.config.services == ServiceMode::On;
            let failed = state.executor.dataplane.attach_host_processes(cgroup, has_services).err();
            let failed = failed.map(|error| format!("{NO_HOST_PROCESSES}: {error}"));
            state.conditions.update(ConditionName::HostProcesses, failed);
        }
    }
}

/// Loads the programs, with the maps that are pinned.
///
/// # Errors
/// [`DataplaneError`] of programs, maps and pins.
pub(in crate::daemon) fn load(config: &Config, vxlan: Option<u32>) -> Result<Dataplane, DataplaneError> {
    let (constants, sizes, pins) =
        (config.for_programs(vxlan), config.map_sizes(), Some(config.places.bpf_dir.as_path()));
    match &config.bpf_object {
        Some(file) => load::load_file(file, &constants, &sizes, pins),
        None => load::load(&constants, &sizes, pins),
    }
}

/// Returns the VXLAN device's ifindex, and makes the device if necessary. In direct mode, removes a
/// device that an earlier mode left, and returns `None`.
pub(in crate::daemon) async fn tunnel_device(config: &Config, links: &Links) -> Result<Option<u32>, Error> {
    if config.mode == Mode::Direct {
        if let Some(device) = links.device(VXLAN_DEVICE).await? {
            info!("device {VXLAN_DEVICE} is removed: direct routing has no tunnel");
            links.remove_device(device.index, VXLAN_DEVICE).await?;
        }
        return Ok(None);
    }
    let (device, replaced) = links.ensure_vxlan(config.vxlan_port).await?;
    if replaced {
        warn!("device {VXLAN_DEVICE} was not as configured: the agent replaced it");
    }
    // The node's families are not known yet. IPv6 follows when they are.
    config.places.switches().put_right(&Switch::forwarding(Family::V4, VXLAN_DEVICE))?;
    Ok(Some(device.index))
}
