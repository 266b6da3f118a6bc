//! Endpoints without a device, and devices without an endpoint.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podwire_core::host::Host;
use podwire_core::model::Endpoint;
use tracing::{error, info, warn};

use super::{DEVICE_GONE, Pods, not_released};
use crate::daemon::state::State;
use crate::events::Repair;

/// Time that the sweep waits for a plugin. A plugin that adds an attachment again removes the
/// attachment's link, and asks the agent milliseconds later.
const REPLACED_WITHIN: Duration = Duration::from_secs(5);

impl Pods {
    /// Releases the endpoints that have lost their device: their pods are gone, even if no DEL
    /// arrives. Waits [`REPLACED_WITHIN`] first, because the plugin replaces the link of an
    /// attachment that is added again, and the attachment keeps its address. Once the node list is
    /// known, removes devices that no endpoint has owned for a minute.
    pub(in crate::daemon) async fn sweep(&mut self, state: &mut State, host: &Host) {
        let is_gone = |endpoint: &&Endpoint| !host.devices.contains_key(&endpoint.ifindex);
        let gone: Vec<Endpoint> = state.model.endpoints.values().filter(is_gone).cloned().collect();
        let (now, missed_before) = (Instant::now(), std::mem::take(&mut self.missed));
        let mut due = Vec::new();
        for endpoint in gone {
            let since = missed_before.get(&endpoint.attachment).copied().unwrap_or(now);
            // While the endpoint is missed, the model wants no programs and no route for it:
            // without a device the agent can make neither.
            self.missed.insert(endpoint.attachment.clone(), since);
            if now.duration_since(since) >= REPLACED_WITHIN {
                due.push(endpoint);
            }
        }
        for (endpoint, outcome) in self.release_all(state, due, DEVICE_GONE).await {
            match outcome {
                Ok(()) => drop(self.missed.remove(&endpoint.attachment)),
                Err(failure) => not_released(state, &endpoint, &failure.message),
            }
        }
        state.model.without_device = self.missed.keys().cloned().collect();
        self.remove_strays(state, host).await;
    }

    /// Gives pods' devices their names back. Returns whether any device had lost its name.
    pub(in crate::daemon) async fn put_names_back(&self, state: &mut State, host: &Host) -> bool {
        let renamed = state.model.endpoints.values().filter_map(|endpoint| {
            let device = host.devices.get(&endpoint.ifindex)?;
            let is_pods = device.name != endpoint.host_interface && device.mac == Some(endpoint.host_mac);
            is_pods.then_some((endpoint, device))
        });
        let (mut any, mut count) = (false, 0);
        for (endpoint, device) in renamed {
            any = true;
            match state.executor.links.rename(device, &endpoint.host_interface).await {
                Ok(()) => {
                    count += 1;
                    warn!(
                        pod = %endpoint, device = device.name,
                        "another tool has renamed the pod's link: the agent gave it its name back; keep other tools (udev, networkd) off devices named pw*"
                    );
                }
                Err(error) => {
                    error!(pod = %endpoint, device = device.name, "another tool has renamed the pod's link, and the agent cannot rename it back: {error}")
                }
            }
        }
        state.count_repairs(Repair::LinkName, count);
        any
    }

    async fn remove_strays(&mut self, state: &mut State, host: &Host) {
        let owned: BTreeSet<u32> = state.model.endpoints.values().map(|endpoint| endpoint.ifindex).collect();
        let ownerless = host.pod_devices().map(|device| device.index).filter(|index| !owned.contains(index));
        for index in self.strays.look(ownerless, Instant::now()) {
            let Some(device) = host.devices.get(&index).filter(|_| state.is_complete) else {
                continue;
            };
            match state.executor.links.remove_device(index, &device.name).await {
                Ok(()) => info!(device = device.name, "link removed: no pod has owned it for a minute"),
                Err(error) => error!("{error}"),
            }
        }
    }
}
