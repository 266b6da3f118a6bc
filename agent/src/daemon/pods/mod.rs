//! The pods of this node: ADD, DEL, CHECK, GC, and what happens when a device disappears.
//!
//! Other threads do what takes long. Meanwhile the agent serves ADDs and DELs of other pods, looks
//! at changed links, and answers whether it is alive; everything else waits.

mod add;
mod check;
mod gc;
mod other;
mod restore;
mod sweep;

use std::collections::BTreeMap;
use std::time::Instant;

use podwire_cni::protocol::{Call, Failure, Reply};
use podwire_core::host::Host;
use podwire_core::host_ports;
use podwire_core::model::{Attachment, Endpoint};
use podwire_core::strays::Strays;
use tokio::sync::oneshot;
use tracing::warn;

use super::executor::Joined;
use super::state::State;
use crate::conditions::ConditionName;
use crate::error::Error;
use crate::events::Event;
use add::Adding;
use gc::Releasing;
use other::OtherPods;

pub(super) use add::proposed;
pub(super) use check::check;

/// The log line of a release that no runtime asked for.
const DEVICE_GONE: &str = "released: its device is gone";

/// Work in progress for pods.
#[derive(Default)]
pub(super) struct Pods {
    /// ADDs that only wait for the disk, by name of the host side.
    adding: BTreeMap<String, Adding>,
    /// Releases that wait for a purge of flows, by name of the host side.
    releasing: BTreeMap<String, Releasing>,
    /// Whether the disk has refused a file since [`Self::take_disk_failure`] was last called.
    has_disk_failed: bool,
    /// Endpoints without a device, and since when it is missing.
    missed: BTreeMap<Attachment, Instant>,
    /// Devices that no endpoint owns.
    strays: Strays,
    /// Addresses of the podCIDR that others hold.
    pub(super) other: OtherPods,
}

impl Pods {
    /// Returns whether the disk has refused a file since the last call.
    pub(super) fn take_disk_failure(&mut self) -> bool {
        std::mem::take(&mut self.has_disk_failed)
    }

    /// Returns whether an event can be served while other threads work. ADDs and DELs of other pods
    /// can. A notice of changed links can, too: after most notices the agent only lists the links.
    pub(super) fn can_overlap(&self, event: &Event) -> bool {
        let Event::Call { call, .. } = event else {
            // A slow disk must not make the agent look dead.
            return matches!(event, Event::Alive(_) | Event::LinksChanged);
        };
        match &**call {
            Call::Add(add) => {
                let name = add.attachment.host_interface();
                !self.adding.contains_key(&name) && !self.releasing.contains_key(&name)
            }
            Call::Del(attachment) => !self.adding.contains_key(&attachment.host_interface()),
            _ => false,
        }
    }

    fn is_anything_under_way(&self) -> bool {
        !self.adding.is_empty() || !self.releasing.is_empty()
    }

    /// Waits for all other threads, and answers the calls that wait for them.
    pub(super) async fn finish_all_joined(&mut self, state: &mut State) {
        while let Some(joined) = state.executor.joined().await {
            self.finish_joined(state, joined).await;
        }
    }

    /// Continues with the result of another thread.
    pub(super) async fn finish_joined(&mut self, state: &mut State, joined: Joined) {
        match joined {
            Joined::Saved(name, outcome) => self.finish_saved(state, name, outcome).await,
            Joined::Purged(addresses, outcome) => self.finish_purged(state, &addresses, outcome).await,
        }
    }

    /// Returns whether every endpoint has its device.
    pub(super) fn has_all_devices(&self) -> bool {
        self.missed.is_empty()
    }

    /// Returns whether a device without an owner is due to be removed.
    pub(super) fn has_due_strays(&self) -> bool {
        self.strays.due(Instant::now())
    }

    /// Notes that an endpoint's device was not found.
    pub(super) fn miss(&mut self, state: &mut State, attachment: Attachment) {
        state.model.without_device.insert(attachment.clone());
        self.missed.insert(attachment, Instant::now());
    }
}

/// Reports that an endpoint was not released. The next sweep tries again.
fn not_released(state: &mut State, endpoint: &Endpoint, why: &str) {
    let why = format!("the device of {endpoint} is gone, but its address cannot be released yet: {why}");
    state.conditions.set_for(ConditionName::NotReleased, &endpoint.host_interface, why);
}

/// Forgets an endpoint after all of it was taken back.
fn forget(state: &mut State, endpoint: &Endpoint) {
    state.model.endpoints.remove(&endpoint.attachment);
    state.model.without_device.remove(&endpoint.attachment);
    for of_pod in [
        ConditionName::PodsOutsidePodCidr,
        ConditionName::NotReleased,
        ConditionName::HostIpAbsent,
        ConditionName::EndpointRecovered,
    ] {
        state.conditions.clear_for(of_pod, &endpoint.host_interface);
    }
}

/// Reports pods with hostPorts at addresses that the node does not have.
pub(super) fn look_at_host_addresses(state: &mut State, host: &Host) {
    let own = host.own_addresses();
    let pods = state.model.endpoints.values().filter(|pod| !pod.port_mappings.is_empty());
    let absent = pods.filter_map(|pod| {
        let absent = host_ports::foreign_addresses(&pod.port_mappings, &own);
        let addresses: Vec<_> = absent.iter().map(ToString::to_string).collect();
        let why = format!(
            "hostIP {} is not an address of this node: the hostPorts of {pod} do not answer there until it is",
            addresses.join(", ")
        );
        (!absent.is_empty()).then(|| (pod.host_interface.clone(), why))
    });
    let absent: Vec<_> = absent.collect();
    state.conditions.replace(ConditionName::HostIpAbsent, absent);
}

/// Answers a call. The plugin may have given up at this very moment. Then what was done stays, and
/// the pod's DEL undoes it.
pub(super) fn answer(reply: oneshot::Sender<Reply>, result: Result<Reply, Failure>) {
    let _ = reply.send(result.unwrap_or_else(|failure| {
        warn!(code = failure.code, "refused: {failure}");
        Reply::Failed(failure)
    }));
}

pub(super) fn refuse(code: u32, message: String) -> Failure {
    Failure { code, message }
}

fn failure(error: impl Into<Error>) -> Failure {
    let error = error.into();
    refuse(error.cni_code(), error.to_string())
}
