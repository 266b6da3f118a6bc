//! Making the kernel hold what the model wants: after each node list, soon after the kernel has told of a change, and every two
//! minutes against what others did to the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_common::names::VXLAN_DEVICE;
use podwire_core::change::Change;
use podwire_core::features::{Scope, desired};
use podwire_core::host::Host;
use podwire_core::model::{Node, Path};
use podwire_core::plan::{Op, Rank, Removals, plan};
use podwire_core::slice::{Hooks, Slice};
use tracing::{info, warn};

use super::Daemon;
use super::attempts::Attempts;
use super::found::{Displaced, Found};
use crate::before::Before;
use crate::conditions::ConditionName;
use crate::dataplane::attach::UplinkAttachment;
use crate::error::Error;

/// A change of policy routing shows in none of the lists that are compared: while anything changes, the ways are asked for
/// again after this.
const PATHS_VALID: Duration = Duration::from_secs(60);
/// The kernel tells of devices, addresses and routes. What others did to the maps it does not: all is compared after this.
const SETTLED: Duration = Duration::from_secs(120);

impl Daemon {
    /// Whether there is a reason to compare the kernel with what is wanted.
    pub(super) fn may_differ(&mut self) -> bool {
        let changed = self.changes.any();
        self.paths_doubtful |= changed;
        let settled = self.settled.is_some_and(|since| since.elapsed() < SETTLED);
        let strays = self.strays.due(Instant::now());
        changed || !settled || strays || self.paths_doubtful && self.paths_are_old()
    }

    fn paths_are_old(&self) -> bool {
        self.paths_asked.is_none_or(|asked| asked.elapsed() > PATHS_VALID)
    }

    /// One round; what fails is logged and tried again with the next. Whether nothing did.
    pub(super) async fn reconcile(&mut self) -> bool {
        let failed = self.try_reconcile().await.err().map(|error| error.to_string());
        match &failed {
            None => self.conditions.clear(ConditionName::NotSetUp),
            // Where nothing was served before, that is why nothing is served now.
            Some(why) if self.model.uplinks.is_empty() || !self.is_set_up => {
                self.conditions.set(ConditionName::NotSetUp, why);
            }
            Some(_) => {}
        }
        let settled = failed.is_none() && self.conditions.refusal().is_none();
        self.conditions.update(ConditionName::ReconcileFailed, failed);
        self.settled = (settled && self.missed.is_empty()).then(Instant::now);
        settled
    }

    async fn try_reconcile(&mut self) -> Result<(), Error> {
        let mut host = self.executor.links.host().await?;
        self.sweep(&host).await;
        if self.put_names_back(&host).await {
            host = self.executor.links.host().await?;
        }
        // Before programs are loaded anew: they take the maps that are pinned.
        self.look_after_pins();
        let tunnel = host.device(VXLAN_DEVICE).map(|device| device.index);
        if self.model.vxlan.is_some() && self.model.vxlan != tunnel {
            self.rebuild_tunnel().await?;
            host = self.executor.links.host().await?;
        }
        self.model.other_addresses = host.own_addresses();
        self.look_for_other_pods(&host).await;
        let has_uplink = self.look_at_uplinks(&host).await;
        let put_right = self.put_right(&host, has_uplink).await;
        if !has_uplink {
            return put_right;
        }
        self.attach_uplinks().await?;
        self.executor.dataplane.finish_upgrade()?;
        self.host = Arc::new(host);
        put_right?;
        self.conditions.clear(ConditionName::NotSetUp);
        self.is_set_up = self.conditions.refusal().is_none();
        Ok(())
    }

    /// Finds the uplinks and the ways to the other nodes. `false`: there is no uplink, and nothing can be done.
    async fn look_at_uplinks(&mut self, host: &Host) -> bool {
        let Some(own) = self.model.own.clone() else {
            return false;
        };
        let uplinks = match host.uplinks(&self.config.uplinks, own.address) {
            Ok(uplinks) => uplinks,
            Err(why) => {
                self.conditions.set(ConditionName::NoUplink, why.to_string());
                return false;
            }
        };
        self.conditions.clear(ConditionName::NoUplink);
        if uplinks != self.model.uplinks {
            for uplink in &uplinks {
                let addresses: Vec<_> = uplink.addresses.iter().map(ToString::to_string).collect();
                info!(device = uplink.name, mtu = uplink.mtu, addresses = addresses.join(", "), "uplink");
            }
            self.model.uplinks = uplinks;
        }
        let doubtful = self.paths_asked.is_none() || self.paths_doubtful && self.paths_are_old();
        if doubtful || host.routes_differ(&self.host) {
            self.model.paths = self.ask_paths(host).await;
            self.paths_asked = Some(Instant::now());
            self.paths_doubtful = false;
        }
        let mtu = self.model.pod_mtu();
        if mtu != self.pod_mtu {
            self.pod_mtu = mtu;
            self.tell_mtu();
        }
        true
    }

    fn tell_mtu(&mut self) {
        let (Some(mtu), Some(fitting)) = (self.pod_mtu, self.model.fitting_mtu()) else {
            return;
        };
        info!(mtu, "MTU of new pods");
        let too_large = format!(
            "--mtu {mtu} is more than the {fitting} bytes that fit this node's uplinks: pods will be told so packet by packet"
        );
        self.conditions.update(ConditionName::MtuTooLarge, (mtu > fitting).then_some(too_large));
    }

    async fn ask_paths(&mut self, host: &Host) -> BTreeMap<IpAddr, Path> {
        let mut paths = BTreeMap::new();
        let mut reports = Vec::new();
        for node in self.model.remote.values() {
            let (path, report) = self.ask_path(node, host).await;
            paths.extend(path.map(|path| (node.address, path)));
            reports.extend(report.map(|(name, sentence)| (name, node.name.clone(), sentence)));
        }
        for name in [ConditionName::NoRouteToNode, ConditionName::RoutePastUplinks] {
            let of_name = reports.iter().filter(|(of, ..)| *of == name);
            let of_name = of_name.map(|(_, node, sentence)| (node.clone(), sentence.clone()));
            self.conditions.replace(name, of_name);
        }
        paths
    }

    /// Asks for the ways to these nodes, and forgets those to where nodes were before.
    pub(super) async fn renew_paths(&mut self, before: &[Node], now: &[Node]) {
        let asked: BTreeSet<&str> = before.iter().chain(now).map(|node| node.name.as_str()).collect();
        for node in before {
            self.model.paths.remove(&node.address);
        }
        let mut reports = Vec::new();
        for node in now {
            let (path, report) = self.ask_path(node, &self.host).await;
            self.model.paths.extend(path.map(|path| (node.address, path)));
            reports.extend(report.map(|(name, sentence)| (name, node, sentence)));
        }
        for name in [ConditionName::NoRouteToNode, ConditionName::RoutePastUplinks] {
            let of_name = reports.iter().filter(|(of, ..)| *of == name);
            let still: BTreeSet<&str> = of_name.map(|(_, node, _)| node.name.as_str()).collect();
            self.conditions.retain(name, |node| !asked.contains(node) || still.contains(node));
        }
        for (name, node, sentence) in reports {
            self.conditions.set_for(name, &node.name, sentence);
        }
    }

    /// The way to a node, and what an operator has to know of it.
    async fn ask_path(&self, node: &Node, host: &Host) -> (Option<Path>, Option<(ConditionName, String)>) {
        let path = self.executor.links.path(node.address, host).await;
        let report = match path {
            Some(path) if self.model.uplinks.iter().any(|uplink| uplink.index == path.device) => None,
            Some(path) => {
                let device = host.devices.get(&path.device).map_or("?", |device| &device.name);
                let why = format!(
                    "the route to node {} ({}) leaves by {device}, which is no uplink",
                    node.name, node.address
                );
                Some((ConditionName::RoutePastUplinks, why))
            }
            None => {
                let why = format!(
                    "there is no route to node {} (InternalIP {}): its pods are out of reach",
                    node.name, node.address
                );
                Some((ConditionName::NoRouteToNode, why))
            }
        };
        (path, report)
    }

    /// Makes the kernel hold what is wanted. Without an uplink, only programs of links that are there.
    async fn put_right(&mut self, host: &Host, has_uplink: bool) -> Result<(), Error> {
        if self.uplink_attachment == UplinkAttachment::Clsact {
            self.model.filtered_uplinks.clone_from(&self.attached);
        }
        let mut want = desired(&self.model, Scope::All);
        name_as_they_are(&mut want, host);
        let Found { have, displaced } = self.executor.find(&want, host).await?;
        for (_, uplink) in want.programs.iter().filter(|(index, _)| have.programs.contains_key(index)) {
            self.conditions.clear_for(ConditionName::UplinkObstructed, &uplink.device);
        }
        let removals = if self.complete { Removals::Allowed } else { Removals::Withheld };
        let mut attempts = Attempts::default();
        let mut ops = Vec::new();
        for op in plan(&want, &have, removals) {
            let is_possible = match &op {
                Op::Programs(Change { key, now: Some(programs), .. }) => {
                    self.make_room(programs.hooks, *key, &programs.device).await
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
        attempts.note(self.executor.run_all(ops, &mut reached, host).await);
        self.tell_repairs(&repairs, &displaced, &reached);
        attempts.outcome()
    }

    /// What others have changed, and is now as it was.
    fn tell_repairs(&mut self, repairs: &[Op], displaced: &[Displaced], reached: &Slice) {
        for displaced in displaced.iter().filter(|lost| reached.programs.contains_key(&lost.index)) {
            self.count_reattached(&displaced.device, displaced.program, &displaced.in_its_place());
        }
        let pod = |index: &u32| self.model.endpoints.values().find(|endpoint| endpoint.ifindex == *index);
        for op in repairs {
            match op {
                Op::Link(Change { key, before: Some(before), now })
                    if reached.links.get(key) == now.as_ref() =>
                {
                    if let Some(pod) = pod(key) {
                        let (device, was_up, mtu) = (&before.name, before.up, before.mtu);
                        warn!(%pod, device, was_up, mtu, "set up: something else had changed the pod's link on the node");
                    }
                }
                Op::Queue(Change { key, .. }) if reached.queues.contains_key(key) => {
                    if let Some(pod) = pod(key) {
                        warn!(%pod, "the limit of what it receives was missing or another one: it is set again");
                    }
                }
                _ => {}
            }
        }
    }

    async fn attach_uplinks(&mut self) -> Result<(), Error> {
        for uplink in self.model.uplinks.clone() {
            if self.attached.get(&uplink.index) == Some(&uplink.name) {
                continue;
            }
            if self.uplink_attachment == UplinkAttachment::Clsact {
                if !self.make_room(Hooks::Uplink, uplink.index, &uplink.name).await? {
                    continue;
                }
                if !self.executor.links.has_clsact(uplink.index).await? {
                    let mut before = Before::load(&self.config.places.state_dir)?;
                    before.without_clsact.insert(uplink.name.clone());
                    before.save(&self.config.places.state_dir)?;
                }
            }
            self.executor.dataplane.attach_uplink(
                &uplink.name,
                self.uplink_attachment,
                self.config.uplink_xdp,
            )?;
            info!(device = uplink.name, how = ?self.uplink_attachment, xdp = ?self.config.uplink_xdp, "programs attached to the uplink");
            self.attached.insert(uplink.index, uplink.name.clone());
        }
        self.attached.retain(|index, _| self.model.uplinks.iter().any(|uplink| uplink.index == *index));
        let is_uplink = |name: &str| self.model.uplinks.iter().any(|uplink| uplink.name == name);
        self.conditions.retain(ConditionName::UplinkObstructed, is_uplink);
        self.executor.dataplane.detach_other_uplinks(&self.model.uplinks)
    }
}

/// By the names that links have now: somebody may have renamed them.
fn name_as_they_are(want: &mut Slice, host: &Host) {
    let name = |index: &u32, name: &mut String| *name = host.name_of(*index, name).to_owned();
    want.programs.iter_mut().for_each(|(index, programs)| name(index, &mut programs.device));
    want.queues.iter_mut().for_each(|(index, queue)| name(index, &mut queue.device));
    want.links.iter_mut().for_each(|(index, link)| name(index, &mut link.name));
}
