//! Loading programs, and putting them in the place of an earlier agent's.

use std::sync::Arc;

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::model::{Endpoint, Mode};
use tracing::{error, info, warn};

use super::Upkeep;
use crate::conditions::ConditionName;
use crate::config::Config;
use crate::daemon::pods::Pods;
use crate::daemon::state::State;
use crate::dataplane::{Dataplane, DataplaneError, load};
use crate::error::Error;
use crate::links::Links;
use crate::sysctl::Switch;

/// What a node lacks without the programs of its own processes.
pub(in crate::daemon) const NO_HOST_PROCESSES: &str =
    "this node's own processes do not reach pods' hostPorts by the node's addresses, 127.0.0.1 included";

impl Upkeep {
    /// Makes the tunnel's device and everything that refers to it anew, when somebody removed it.
    pub(super) async fn rebuild_tunnel(&mut self, state: &mut State, pods: &mut Pods) -> Result<(), Error> {
        warn!("device {VXLAN_DEVICE} was removed or replaced: it is made anew");
        let vxlan = tunnel_device(&state.config, &state.executor.links).await?;
        // The programs know the device by its number, which is written into them at load.
        state.executor.dataplane = load(&state.config, vxlan)?;
        // What fails after this is attached by the next round; had this been known before, no round would load them.
        state.model.vxlan = vxlan;
        self.replace_programs(state, pods).await?;
        self.attached.clear();
        state.host = Arc::new(state.executor.links.host().await?);
        Ok(())
    }

    /// Those of everything that is known: what an earlier agent's did from here on is done by these.
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
                // A plugin has deleted its pod meanwhile, as it does without an agent: no other pod is to pay for that.
                if state.executor.is_gone(pod.ifindex, device).await? {
                    pods.miss(state, pod.attachment);
                } else {
                    // It keeps the programs that it has; the next look at the kernel tries again.
                    error!(%pod, "{error}");
                }
            }
        }
        Ok(())
    }

    /// Pods do without: what fails here is told and no more.
    pub(super) fn attach_host_processes(&self, state: &mut State) {
        if let Some(cgroup) = &self.cgroup {
            let failed = state.executor.dataplane.attach_host_processes(cgroup).err();
            let failed = failed.map(|error| format!("{NO_HOST_PROCESSES}: {error}"));
            state.conditions.update(ConditionName::HostProcesses, failed);
        }
    }
}

/// Loads the programs, with the maps that are pinned.
///
/// # Errors
/// Of programs, maps and pins.
pub(in crate::daemon) fn load(config: &Config, vxlan: Option<u32>) -> Result<Dataplane, DataplaneError> {
    let (constants, sizes, pins) =
        (config.for_programs(vxlan), config.map_sizes(), Some(config.places.bpf_dir.as_path()));
    match &config.bpf_object {
        Some(file) => load::load_file(file, &constants, &sizes, pins),
        None => load::load(&constants, &sizes, pins),
    }
}

/// The VXLAN device's ifindex; in direct mode none, and one that an earlier mode left is removed.
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
        warn!("device {VXLAN_DEVICE} was not as configured: it is made anew");
    }
    for switch in Switch::of_tunnel(VXLAN_DEVICE) {
        config.places.switches().put_right(&switch)?;
    }
    Ok(Some(device.index))
}
