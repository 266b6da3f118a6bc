//! Making the kernel hold what the model wants: after each node list, soon after the kernel has told of a change, and every two
//! minutes against what others did to the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podwire_common::abi;
use podwire_common::addr::Addr;
use podwire_common::names::VXLAN_DEVICE;
use tracing::{debug, info, warn};

use super::Daemon;
use super::attempts::Attempts;
use crate::before::Before;
use crate::conditions::ConditionName;
use crate::dataplane::attach::UplinkAttachment;
use crate::desired::{Contents, Route, desired};
use crate::diff::{Deletions, Op, diff};
use crate::error::Error;
use crate::events::Repair;
use crate::host::{Device, Host};
use crate::model::{Node, Path};

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
        let mut host = self.links.host().await?;
        self.sweep(&host).await;
        if self.put_names_back(&host).await {
            host = self.links.host().await?;
        }
        // Before programs are loaded anew: they take the maps that are pinned.
        self.look_after_pins();
        let tunnel = host.device(VXLAN_DEVICE).map(|device| device.index);
        if self.model.vxlan.is_some() && self.model.vxlan != tunnel {
            self.rebuild_tunnel().await?;
            host = self.links.host().await?;
        }
        let filters = self.put_filters_back(&host).await;
        self.model.other_addresses = host.own_addresses();
        self.look_at_host_addresses(&host);
        self.look_for_other_pods(&host).await;
        if !self.look_at_uplinks(&host).await {
            return Ok(());
        }
        // Before the routes: the kernel refuses them through a device that is down.
        let pods_up = self.set_up_pods(&host).await?;
        if self.set_up_tunnel(&host).await? || pods_up {
            host = self.links.host().await?;
        }
        self.apply_contents(&host).await?;
        let limits = self.set_limits().await;
        self.attach_uplinks().await?;
        self.host = Arc::new(host);
        self.conditions.clear(ConditionName::NotSetUp);
        self.is_set_up = self.conditions.refusal().is_none();
        filters.and(limits)
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

    async fn ask_paths(&mut self, host: &Host) -> BTreeMap<Ipv4Addr, Path> {
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
        let path = self.links.path(node.address, host).await;
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

    /// Maps and routes.
    async fn apply_contents(&mut self, host: &Host) -> Result<(), Error> {
        let mut want = desired(&self.model);
        for endpoint in self.missed.keys().filter_map(|attachment| self.model.endpoints.get(attachment)) {
            // The kernel has removed it with the device, and would refuse it.
            want.routes.remove(&endpoint.address.into());
        }
        let mut have = self.dataplane.maps.contents()?;
        have.routes.clone_from(&host.own_routes);
        let deletions = if self.complete { Deletions::Allowed } else { Deletions::Withheld };
        self.carry_out(diff(&want, &have, deletions), &have, host).await
    }

    /// The operations, in order. One that fails does not keep the others from being done.
    pub(super) async fn carry_out(
        &mut self,
        ops: Vec<Op>,
        have: &Contents,
        host: &Host,
    ) -> Result<(), Error> {
        let mut attempts = Attempts::default();
        for op in ops {
            debug!(?op, "change");
            let mut done = self.apply(op).await;
            if done.is_ok()
                && let Op::RemoveNode(prefix) = op
                && have.nodes[&prefix].flags & abi::NODE_LOCAL != 0
            {
                done = self.forget_address(prefix.address);
            }
            if done.is_err()
                && let Op::SetRoute(_, Route::Link { device, .. }) = op
                && let Some(device) = host.devices.get(&device)
                && self.is_gone(device.index, &device.name).await?
            {
                continue;
            }
            attempts.note(done);
        }
        attempts.outcome()
    }

    /// An address that this node had: what was translated to it would go on leaving with it, and be answered by nobody.
    fn forget_address(&mut self, address: Addr) -> Result<(), Error> {
        let entries = self.dataplane.maps.forget_translations(address)?;
        info!(?address, entries, "translations removed: the address is no longer this node's");
        Ok(())
    }

    pub(super) async fn apply(&mut self, op: Op) -> Result<(), Error> {
        self.operations += 1;
        match op {
            Op::SetRoute(destination, route) => self.links.set_route(destination, route).await,
            Op::RemoveRoute(destination, route) => self.links.remove_route(destination, route).await,
            on_map => self.dataplane.maps.apply(&on_map),
        }
    }

    /// Pods' links that somebody has set down on the node. Says whether there were any.
    async fn set_up_pods(&mut self, host: &Host) -> Result<bool, Error> {
        let mut count = 0;
        for pod in self.model.endpoints.values() {
            let Some(device) = host.devices.get(&pod.ifindex).filter(|device| !device.up) else {
                continue;
            };
            match self.links.set_mtu_and_up(device.index, &device.name, pod.mtu).await {
                Ok(()) => {
                    warn!(%pod, device = device.name, "set up: something else had set the pod's link down on the node");
                    count += 1;
                }
                Err(_) if self.is_gone(device.index, &device.name).await? => {}
                Err(error) => return Err(error),
            }
        }
        self.count_repairs(Repair::LinkDown, count);
        Ok(count > 0)
    }

    /// MTU and addresses of the VXLAN device. It carries the overlay address so that what the host masquerades into
    /// the tunnel gets a source that comes back; an address that pods of an earlier podCIDR have as their gateway stays
    /// as long as they do.
    /// Says whether anything changed.
    async fn set_up_tunnel(&mut self, host: &Host) -> Result<bool, Error> {
        let (Some(device), Some(mtu)) = (host.device(VXLAN_DEVICE), self.model.fitting_mtu()) else {
            return Ok(false);
        };
        if self.model.vxlan.is_none() {
            return Ok(false);
        }
        let gateways = self.model.endpoints.values().map(|endpoint| endpoint.gateway);
        let own = self.model.own.as_ref().map(|own| own.overlay_address());
        let wanted: BTreeSet<_> = own.into_iter().chain(gateways).collect();
        let mut changed = self.set_addresses(host, device, &wanted).await?;
        if device.mtu != mtu || !device.up {
            self.links.set_up_vxlan(device.index, mtu, self.config.vxlan_port).await?;
            info!(device = VXLAN_DEVICE, mtu, "tunnel device set up");
            changed = true;
        }
        Ok(changed)
    }

    async fn set_addresses(
        &self,
        host: &Host,
        device: &Device,
        wanted: &BTreeSet<Ipv4Addr>,
    ) -> Result<bool, Error> {
        let there: Vec<_> = host.addresses.iter().filter(|entry| entry.device == device.index).collect();
        let mut changed = false;
        for address in wanted {
            if !there.iter().any(|entry| entry.address == *address && entry.global) {
                self.links.add_address(device.index, *address).await?;
                changed = true;
            }
        }
        for entry in there {
            if !wanted.contains(&entry.address) {
                self.links.remove_address(entry).await?;
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Pods' limits that somebody has taken away or changed. What fails does not keep the others from being set.
    async fn set_limits(&mut self) -> Result<(), Error> {
        let endpoints = self.model.endpoints.values();
        let endpoints = endpoints.filter(|endpoint| !self.missed.contains_key(&endpoint.attachment));
        let limited: Vec<_> =
            endpoints.filter_map(|endpoint| Some((endpoint, endpoint.ingress_limit()?))).collect();
        if limited.is_empty() {
            return Ok(());
        }
        let queues = self.links.queues().await?;
        let (mut attempts, mut count) = (Attempts::default(), 0);
        for (endpoint, limit) in limited {
            let name = &endpoint.host_interface;
            if queues.limit(endpoint.ifindex, &limit) {
                continue;
            }
            match self.links.set_limit(endpoint.ifindex, name, &limit).await {
                Ok(()) => {
                    warn!(pod = %endpoint, "the limit of what it receives was missing or another one: it is set again");
                    count += 1;
                }
                Err(_) if self.is_gone(endpoint.ifindex, name).await? => {}
                failed => attempts.note(failed),
            }
        }
        self.count_repairs(Repair::LinkLimit, count);
        attempts.outcome()
    }

    async fn attach_uplinks(&mut self) -> Result<(), Error> {
        for uplink in self.model.uplinks.clone() {
            if self.attached.get(&uplink.index) == Some(&uplink.name) {
                continue;
            }
            if self.uplink_attachment == UplinkAttachment::Clsact {
                if !self.make_room_on_uplink(uplink.index, &uplink.name).await? {
                    continue;
                }
                if !self.links.has_clsact(uplink.index).await? {
                    let mut before = Before::load(&self.config.places.state_dir)?;
                    before.without_clsact.insert(uplink.name.clone());
                    before.save(&self.config.places.state_dir)?;
                }
            }
            self.dataplane.attach_uplink(&uplink.name, self.uplink_attachment, self.config.uplink_xdp)?;
            info!(device = uplink.name, how = ?self.uplink_attachment, xdp = ?self.config.uplink_xdp, "programs attached to the uplink");
            self.attached.insert(uplink.index, uplink.name.clone());
        }
        self.attached.retain(|index, _| self.model.uplinks.iter().any(|uplink| uplink.index == *index));
        let is_uplink = |name: &str| self.model.uplinks.iter().any(|uplink| uplink.name == name);
        self.conditions.retain(ConditionName::UplinkObstructed, is_uplink);
        self.dataplane.detach_other_uplinks(&self.model.uplinks)
    }
}
