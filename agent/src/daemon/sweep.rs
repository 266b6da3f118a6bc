//! What others take away is put back, and what belongs to nobody goes: endpoints without a device, devices without an endpoint,
//! programs that were displaced, pins that were removed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use podwire_common::names::{VXLAN_DEVICE, programs};
use tracing::{error, info, warn};

use super::Daemon;
use super::attempts::Attempts;
use crate::conditions::ConditionName;
use crate::dataplane::attach::UplinkAttachment;
use crate::dataplane::pins;
use crate::error::Error;
use crate::events::Repair;
use crate::host::Host;
use crate::links::Displaced;
use crate::model::Endpoint;

/// A plugin that adds an attachment again removes its link and asks the agent milliseconds later.
const REPLACED_WITHIN: Duration = Duration::from_secs(5);

/// Devices whose programs are filters, which anybody can replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Overlay,
    Uplink,
}

impl Kind {
    /// Of ingress and egress.
    fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Pod => [programs::FROM_POD, programs::TO_POD],
            Self::Overlay => [programs::FROM_OVERLAY, programs::TO_OVERLAY],
            Self::Uplink => [programs::FROM_UPLINK, programs::TO_UPLINK],
        }
    }
}

impl Daemon {
    /// Releases the endpoints whose device is gone: their pod is, whether or not anybody says so. Not at once: the plugin replaces the link of an attachment that is added again, which keeps its address. Once the node list is known,
    /// devices that no endpoint owns are removed after a grace.
    pub(super) async fn sweep(&mut self, host: &Host) {
        let is_gone = |endpoint: &&Endpoint| !host.devices.contains_key(&endpoint.ifindex);
        let gone: Vec<Endpoint> = self.model.endpoints.values().filter(is_gone).cloned().collect();
        let (now, missed_before) = (Instant::now(), std::mem::take(&mut self.missed));
        for endpoint in gone {
            let since = missed_before.get(&endpoint.attachment).copied().unwrap_or(now);
            // As long as it has no device, nothing can be attached to it, and no route lead there.
            self.missed.insert(endpoint.attachment.clone(), since);
            if now.duration_since(since) < REPLACED_WITHIN {
                continue;
            }
            match self.release(&endpoint).await {
                Ok(()) => {
                    self.missed.remove(&endpoint.attachment);
                    info!(pod = %endpoint, "released: its device is gone");
                }
                Err(error) => {
                    let why = format!(
                        "the device of {endpoint} is gone, but its address cannot be released yet: {error}"
                    );
                    self.conditions.set_for(ConditionName::NotReleased, &endpoint.host_interface, why);
                }
            }
        }
        self.remove_strays(host).await;
    }

    /// Gives pods' devices their names back. Says whether any had lost it.
    pub(super) async fn put_names_back(&mut self, host: &Host) -> bool {
        let renamed = self.model.endpoints.values().filter_map(|endpoint| {
            let device = host.devices.get(&endpoint.ifindex)?;
            let is_pods = device.name != endpoint.host_interface && device.mac == Some(endpoint.host_mac);
            is_pods.then_some((endpoint, device))
        });
        let (mut any, mut count) = (false, 0);
        for (endpoint, device) in renamed {
            any = true;
            match self.links.rename(device, &endpoint.host_interface).await {
                Ok(()) => {
                    count += 1;
                    warn!(
                        pod = %endpoint, device = device.name,
                        "somebody has renamed the pod's link: it has its name again; keep other tools (udev, networkd) off devices named pw*"
                    );
                }
                Err(error) => {
                    error!(pod = %endpoint, device = device.name, "somebody has renamed the pod's link: {error}")
                }
            }
        }
        self.count_repairs(Repair::LinkName, count);
        any
    }

    async fn remove_strays(&mut self, host: &Host) {
        let owned: BTreeSet<u32> = self.model.endpoints.values().map(|endpoint| endpoint.ifindex).collect();
        let ownerless = host.pod_devices().map(|device| device.index).filter(|index| !owned.contains(index));
        for index in self.strays.look(ownerless, Instant::now()) {
            let Some(device) = host.devices.get(&index).filter(|_| self.complete) else {
                continue;
            };
            match self.links.remove_device(index, &device.name).await {
                Ok(()) => info!(device = device.name, "removed: for a minute no pod has owned it"),
                Err(error) => error!("{error}"),
            }
        }
    }

    /// Puts the filters back that another tool has removed or replaced. What fails does not keep the others from it.
    pub(super) async fn put_filters_back(&mut self, host: &Host) -> Result<(), Error> {
        let pods = self.model.endpoints.values().filter(|pod| !self.missed.contains_key(&pod.attachment));
        let pods = pods
            .map(|pod| (Kind::Pod, pod.ifindex, host.name_of(pod.ifindex, &pod.host_interface).to_owned()));
        let overlay = self.model.vxlan.map(|index| (Kind::Overlay, index, VXLAN_DEVICE.to_owned()));
        let uplinks = self.attached.iter().filter(|_| self.uplink_attachment == UplinkAttachment::Clsact);
        let uplinks = uplinks.map(|(index, name)| (Kind::Uplink, *index, name.clone()));
        let devices: Vec<_> = pods.chain(overlay).chain(uplinks).collect();
        let mut attempts = Attempts::default();
        for (kind, index, name) in devices {
            attempts.note(self.put_filters_of_back(kind, index, &name).await);
        }
        attempts.outcome()
    }

    async fn put_filters_of_back(&mut self, kind: Kind, index: u32, name: &str) -> Result<(), Error> {
        let filters = self.links.filters(index).await?;
        let mut lost = Vec::new();
        for (program, found) in kind.programs().into_iter().zip([filters.ingress, filters.egress]) {
            let wanted = self.dataplane.program_id(program)?;
            if found.as_ref().is_none_or(|found| found.program != wanted) {
                let found = found.map_or("no filter".into(), |found| match found.program {
                    0 => "a filter without a program".to_owned(),
                    id => format!("program {id}, {}", found.name),
                });
                lost.push((program, found));
            }
        }
        if lost.is_empty() {
            self.conditions.clear_for(ConditionName::UplinkObstructed, name);
            return Ok(());
        }
        if !self.make_room(kind, index, name).await? {
            return Ok(());
        }
        let attached = match kind {
            Kind::Pod => self.dataplane.attach_pod(name),
            Kind::Overlay => self.dataplane.attach_overlay(name),
            Kind::Uplink => {
                self.dataplane.attach_uplink(name, self.uplink_attachment, self.config.uplink_xdp)
            }
        };
        if attached.is_err() && self.is_gone(index, name).await? {
            return Ok(());
        }
        attached?;
        for (program, found) in lost {
            self.count_reattached(name, program, &found);
        }
        Ok(())
    }

    /// Sees to it that nothing stands where clsact belongs. `false`: it is another tool's, on a link of the node.
    async fn make_room(&mut self, kind: Kind, index: u32, name: &str) -> Result<bool, Error> {
        let ours = kind.programs();
        match self.links.remove_displacing(index, (kind == Kind::Uplink).then_some(&ours)).await? {
            Displaced::No => {}
            Displaced::Removed => {
                warn!(device = name, "removed: another queueing discipline stood in the place of clsact");
                self.count_repairs(Repair::Discipline, 1);
            }
            Displaced::InUse => {
                let why = format!(
                    "the uplink {name} has an `ingress` queueing discipline, or one with shared blocks, which holds filters of another tool: Podwire's programs need clsact in its place. Have that tool use clsact (`tc qdisc add dev {name} clsact`), and run `tc qdisc del dev {name} ingress`"
                );
                self.conditions.set_for(ConditionName::UplinkObstructed, name, why);
                return Ok(false);
            }
        }
        self.conditions.clear_for(ConditionName::UplinkObstructed, name);
        Ok(true)
    }

    /// The same for an uplink that is to get its first programs.
    pub(super) async fn make_room_on_uplink(&mut self, index: u32, name: &str) -> Result<bool, Error> {
        self.make_room(Kind::Uplink, index, name).await
    }

    /// Whether a device has gone since the kernel was looked at.
    pub(super) async fn is_gone(&self, index: u32, name: &str) -> Result<bool, Error> {
        Ok(self.links.device(name).await?.is_none_or(|device| device.index != index))
    }

    /// Looks after what no notice tells of: links that somebody has detached, and pins that somebody has removed. A few questions to
    /// the kernel, whatever the number of pods.
    pub(super) fn look_after_links_and_pins(&mut self) {
        let lost = self.dataplane.take_lost_links().unwrap_or_else(|error| {
            error!("{error}");
            Vec::new()
        });
        for lost in &lost {
            self.count_reattached(&lost.place, &lost.program, &lost.found);
        }
        if lost.iter().any(|lost| programs::CGROUP.contains(&lost.program.as_str())) {
            self.attach_host_processes();
        }
        if lost.iter().any(|lost| !programs::CGROUP.contains(&lost.program.as_str())) {
            // The next reconciliation attaches what is not there, and it is due.
            self.attached.clear();
            self.settled = None;
        }
        self.look_after_pins();
    }

    pub(super) fn look_after_pins(&mut self) {
        let repaired = self.hold_pins().and_then(|()| self.dataplane.repair_pins());
        let folder = self.config.places.bpf_dir.display();
        let unpinned = match repaired {
            Ok(missing) if missing.is_empty() => None,
            Ok(missing) => {
                let count = missing.len() as u64;
                warn!(
                    missing = missing.join(", "),
                    "somebody has removed pins from {folder}: pinned again, with all that was in the maps"
                );
                *self.repairs.entry(Repair::Pin).or_default() += count;
                None
            }
            Err(error) => Some(format!(
                "pins are missing from {folder} and cannot be made again, so that pods lose their network when this agent ends: {error}"
            )),
        };
        if self.conditions.update(ConditionName::PinsMissing, unpinned) {
            self.settled = None;
        }
    }

    /// Holds the folder of pins again when somebody has removed it.
    fn hold_pins(&mut self) -> Result<(), Error> {
        if !self.bpf_lock.is_there() {
            self.bpf_lock = pins::hold(&self.config.places.bpf_dir)?;
        }
        Ok(())
    }

    fn count_reattached(&mut self, device: &str, program: &str, found: &str) {
        self.reattached += 1;
        warn!(device, program, found, "program attached again: something else has removed or replaced it");
    }
}
