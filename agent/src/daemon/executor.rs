//! Carries out plans: each operation of a plan changes disk, links, maps or routes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podwire_cni::fault::{self, Step};
use podwire_common::abi;
use podwire_common::addr::Addr;
use podwire_common::names::VXLAN_DEVICE;
use podwire_core::change::Change;
use podwire_core::ipam::Pools;
use podwire_core::model::{Endpoint, Family};
use podwire_core::plan::Op;
use podwire_core::slice::{Hooks, Link, Programs, Queue, Route, Slice, TableChange};
use tokio::task::JoinSet;
use tracing::{debug, info};

use super::attempts::Attempts;
use crate::config::Config;
use crate::dataplane::Dataplane;
use crate::dataplane::attach::UplinkAttachment;
use crate::dataplane::maps::Maps;
use crate::error::Error;
use crate::files::FileError;
use crate::links::Links;
use crate::store::Store;
use crate::sysctl::{Switch, Switches};

/// What another thread has done while the owner continued.
pub(super) enum Joined {
    /// The file of the endpoint with this host side was written, or could not be.
    Saved(String, Result<(), FileError>),
    /// The flows of these addresses were purged, or could not be.
    Purged(BTreeSet<IpAddr>, Result<(), Error>),
}

/// Result of a thread.
enum Work {
    Saved(String, Result<(), FileError>),
    Purged(Box<Maps>, BTreeSet<IpAddr>, Result<(), Error>),
}

/// The executor of plans, with access to disk, links, maps, routes and addresses.
pub(super) struct Executor {
    pub(super) links: Links,
    pub(super) dataplane: Dataplane,
    pub(super) store: Store,
    pub(super) switches: Switches,
    /// Empty until this node's podCIDRs are known. Then they stay, whatever happens to the node
    /// list.
    pub(super) pools: Pools,
    vxlan_port: u16,
    /// Number of operations that changed maps and routes.
    operations: u64,
    /// Work of other threads.
    working: JoinSet<Work>,
    /// Separate handles for the thread that purges flows. `None` while that thread works.
    purger: Option<Box<Maps>>,
    /// Addresses for the next purge. One walk through the tables purges the flows of all of them.
    to_purge: BTreeSet<IpAddr>,
}

impl Executor {
    /// Creates an executor that has done nothing yet.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub(super) fn new(
        links: Links,
        dataplane: Dataplane,
        store: Store,
        config: &Config,
    ) -> Result<Self, Error> {
        let purger = Some(Box::new(dataplane.maps.another()?));
        Ok(Self {
            links,
            dataplane,
            store,
            switches: config.places.switches(),
            pools: Pools::default(),
            vxlan_port: config.vxlan_port,
            operations: 0,
            working: JoinSet::new(),
            purger,
            to_purge: BTreeSet::new(),
        })
    }

    /// Returns the number of operations that changed maps and routes.
    pub(super) fn operations(&self) -> u64 {
        self.operations
    }

    /// Does the operations up to the first that fails. `reached` becomes what exists afterwards.
    ///
    /// # Errors
    /// The error of that operation.
    pub(super) async fn run(&mut self, ops: Vec<Op>, reached: &mut Slice) -> Result<(), Error> {
        for op in ops {
            self.apply(&op).await?;
            op.apply_to(reached);
            stop_after(&op)?;
        }
        Ok(())
    }

    /// Does operations like [`Self::run`], but other threads do what takes long, and
    /// [`Self::joined`] returns their results:
    ///
    /// - Files are written while the other operations are done, because a disk takes longer than
    ///   all of them. The caller must wait for the file before it reports success or reverses the
    ///   operations.
    /// - After a purge of flows, the remaining operations are left to the caller.
    pub(super) async fn start(&mut self, ops: Vec<Op>, reached: &mut Slice) -> Started {
        let (mut waits, mut rest) = (false, ops.into_iter());
        while let Some(op) = rest.next() {
            let done = match &op {
                Op::File(change) if let Some(endpoint) = &change.now => {
                    let (name, save) = (change.key.clone(), self.store.saving(endpoint));
                    self.working.spawn_blocking(move || Work::Saved(name, save()));
                    waits = true;
                    Ok(())
                }
                Op::Flows(change) if change.is_removal() => {
                    // One walk purges all of a pod's addresses: the release waits for all of them.
                    self.to_purge.insert(change.key);
                    let mut rest: Vec<_> = rest.collect();
                    rest.retain(|op| match op {
                        Op::Flows(change) if change.is_removal() => {
                            self.to_purge.insert(change.key);
                            false
                        }
                        _ => true,
                    });
                    self.purge();
                    return Started { waits: true, rest, done: Ok(()) };
                }
                other => self.apply(other).await,
            };
            let done = done.and_then(|()| {
                op.apply_to(reached);
                stop_after(&op)
            });
            if done.is_err() {
                return Started { waits, rest: Vec::new(), done };
            }
        }
        Started { waits, rest: Vec::new(), done: Ok(()) }
    }

    /// Waits for work of another thread, and returns its result. `None`: no thread works.
    pub(super) async fn joined(&mut self) -> Option<Joined> {
        let work = self.working.join_next().await?;
        match work.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Work::Saved(name, outcome) => Some(Joined::Saved(name, outcome)),
            Work::Purged(purger, addresses, outcome) => {
                self.purger = Some(purger);
                self.purge();
                Some(Joined::Purged(addresses, outcome))
            }
        }
    }

    /// Starts a purge of the pending addresses, unless a walk is in progress: the next walk begins
    /// when that one ends.
    fn purge(&mut self) {
        if self.to_purge.is_empty() {
            return;
        }
        if let Some(mut purger) = self.purger.take() {
            let addresses = std::mem::take(&mut self.to_purge);
            self.working.spawn_blocking(move || {
                let outcome = purger.forget_pods(&addresses).map_err(Error::from);
                let outcome = outcome.and_then(|()| step(Step::FlowsForgotten));
                Work::Purged(purger, addresses, outcome)
            });
        }
    }

    /// Does all operations. If one fails, the others are still done, but no address is released
    /// after it. An operation on a link that no longer exists does not count as failed. `reached`
    /// becomes what exists afterwards.
    ///
    /// # Errors
    /// The first error. All errors are logged.
    pub(super) async fn run_all(&mut self, ops: Vec<Op>, reached: &mut Slice) -> Result<(), Error> {
        let mut attempts = Attempts::default();
        for op in ops {
            if matches!(op, Op::Address(_)) && attempts.has_failed() {
                continue;
            }
            let done = self.apply(&op).await;
            if done.is_ok() {
                op.apply_to(reached);
            } else if let Some(index) = device_of(&op)
                && self.links.device_at(index).await?.is_none()
            {
                continue;
            }
            attempts.note(done);
        }
        attempts.outcome()
    }

    /// Returns whether a device has gone since the kernel was looked at.
    pub(super) async fn is_gone(&self, index: u32, name: &str) -> Result<bool, Error> {
        Ok(self.links.device(name).await?.is_none_or(|device| device.index != index))
    }

    async fn apply(&mut self, op: &Op) -> Result<(), Error> {
        debug!(?op, "change");
        match op {
            Op::Address(change) => self.change_address(change),
            Op::File(change) => self.change_file(change),
            Op::Flows(change) => self.change_flows(change),
            Op::Programs(change) => self.change_programs(change),
            Op::Queue(change) => self.change_queue(change).await,
            Op::Link(change) => self.change_link(change).await,
            Op::Table(change) => self.change_table(change),
            Op::Route(change) => self.change_route(change).await,
        }
    }

    /// Releases an address, or saves which addresses the pools gave last. A plan names its address,
    /// so a pool has given the address before.
    fn change_address(&mut self, change: &Change<IpAddr, ()>) -> Result<(), Error> {
        if change.is_removal() {
            self.pools.release(change.key);
            return Ok(());
        }
        let last = Family::of(change.key).first_of(self.pools.last());
        last.map_or(Ok(()), |last| Ok(self.store.save_last_address(last)?))
    }

    fn change_file(&self, change: &Change<String, Endpoint>) -> Result<(), Error> {
        match (&change.now, &change.before) {
            (Some(endpoint), _) => self.store.save(endpoint)?,
            (None, Some(endpoint)) => self.store.remove(endpoint)?,
            (None, None) => {}
        }
        Ok(())
    }

    fn change_flows(&mut self, change: &Change<IpAddr, ()>) -> Result<(), Error> {
        if change.is_removal() {
            self.dataplane.maps.forget_pods(&BTreeSet::from([change.key]))?;
        }
        Ok(())
    }

    fn change_programs(&mut self, change: &Change<u32, Programs>) -> Result<(), Error> {
        match (&change.now, &change.before) {
            (Some(Programs { hooks: Hooks::Pod, device }), _) => self.dataplane.attach_pod(device)?,
            (Some(Programs { hooks: Hooks::Overlay, device }), _) => self.dataplane.attach_overlay(device)?,
            (
                Some(Programs { hooks: hooks @ (Hooks::Uplink | Hooks::BareUplink | Hooks::Inner), device }),
                _,
            ) => {
                self.dataplane.attach_link(change.key, device, *hooks, UplinkAttachment::Clsact, None)?;
            }
            (None, Some(programs)) => self.dataplane.detach_pod(&programs.device),
            (None, None) => {}
        }
        Ok(())
    }

    async fn change_queue(&mut self, change: &Change<u32, Queue>) -> Result<(), Error> {
        match (&change.now, &change.before) {
            (Some(queue), _) => self.links.set_limit(change.key, &queue.device, &queue.bucket).await?,
            (None, Some(queue)) => self.links.remove_limit(change.key, &queue.device).await?,
            (None, None) => {}
        }
        Ok(())
    }

    async fn change_link(&mut self, change: &Change<u32, Link>) -> Result<(), Error> {
        let index = change.key;
        match (&change.now, &change.before) {
            (Some(link), before) if link.name == VXLAN_DEVICE => {
                let before = before.as_ref().map_or_else(BTreeSet::new, |link| link.addresses.clone());
                for address in link.addresses.difference(&before) {
                    self.links.add_address(index, *address).await?;
                }
                for address in before.difference(&link.addresses) {
                    self.links.remove_address(index, *address).await?;
                }
                self.links.set_up_vxlan(index, link.mtu, self.vxlan_port).await?;
                info!(device = link.name, mtu = link.mtu, "tunnel device set up");
            }
            (Some(link), _) if link.up => {
                let has_ipv6 = self.pools.networks().any(|network| network.addr().is_ipv6());
                for switch in Switch::of_pod(&link.name, has_ipv6) {
                    self.switches.put_right(&switch)?;
                }
                self.links.set_mtu_and_up(index, &link.name, link.mtu).await?;
            }
            (Some(link), _) => self.links.set_down(index, &link.name).await?,
            (None, Some(link)) => self.remove_link(index, link).await?,
            (None, None) => {}
        }
        Ok(())
    }

    /// Removes a link by its ifindex, if its name or its link address matches, too. Another tool
    /// may have made a device with this ifindex in the meantime.
    async fn remove_link(&mut self, index: u32, link: &Link) -> Result<(), Error> {
        if let Some(device) = self.links.device_at(index).await?
            && (device.name == link.name || link.mac.is_some() && device.mac == link.mac)
        {
            self.links.remove_device(index, &device.name).await?;
        }
        Ok(())
    }

    fn change_table(&mut self, change: &TableChange) -> Result<(), Error> {
        self.operations += 1;
        self.dataplane.maps.apply(change)?;
        match change {
            TableChange::Nodes(Change { key, before: Some(node), now: None })
                if node.flags & abi::NODE_LOCAL != 0 =>
            {
                self.forget_address(key.address)
            }
            _ => Ok(()),
        }
    }

    /// Removes translations to an address that this node no longer has. Otherwise packets would
    /// still leave with this address, and no reply would come.
    fn forget_address(&mut self, address: Addr) -> Result<(), Error> {
        let entries = self.dataplane.maps.forget_translations(address)?;
        info!(?address, entries, "translations removed: the address is no longer this node's");
        Ok(())
    }

    async fn change_route(&mut self, change: &Change<IpNet, Route>) -> Result<(), Error> {
        self.operations += 1;
        match (change.now, change.before) {
            (Some(route), _) => self.links.set_route(change.key, route).await?,
            (None, Some(route)) => self.links.remove_route(change.key, route).await?,
            (None, None) => {}
        }
        Ok(())
    }
}

/// State of operations that were started.
pub(super) struct Started {
    /// Whether another thread is at work.
    pub(super) waits: bool,
    /// Operations to do after the purge of flows.
    pub(super) rest: Vec<Op>,
    /// The result of the operations so far.
    pub(super) done: Result<(), Error>,
}

/// Returns the link that an operation needs.
fn device_of(op: &Op) -> Option<u32> {
    match op {
        Op::Programs(change) => Some(change.key),
        Op::Queue(change) => Some(change.key),
        Op::Link(change) => Some(change.key),
        Op::Route(Change { now: Some(Route::Link { device, .. }), .. }) => Some(*device),
        _ => None,
    }
}

/// Stops the agent after an operation if a test asks for it. The operations are the numbered steps
/// of a pod's life (docs/design/life-of-a-pod.md).
fn stop_after(op: &Op) -> Result<(), Error> {
    step_of(op).map_or(Ok(()), step)
}

/// Marks a numbered step as done. A test may stop the agent there.
pub(super) fn step(step: Step) -> Result<(), Error> {
    Ok(fault::after(step).map_err(FileError::of("go on after", step.name()))?)
}

fn step_of(op: &Op) -> Option<Step> {
    let (made, removed) = match op {
        Op::Address(_) => (Step::AddressTaken, Step::Released),
        // The thread that writes the file marks the steps of writing itself.
        Op::File(change) => return change.is_removal().then_some(Step::FileRemoved),
        Op::Flows(change) => return change.is_removal().then_some(Step::FlowsForgotten),
        Op::Programs(change) => return (!change.is_removal()).then_some(Step::ProgramsAttached),
        Op::Queue(change) => return (!change.is_removal()).then_some(Step::LimitSet),
        Op::Link(change) if change.now.as_ref().is_some_and(|link| !link.up) => return None,
        Op::Link(_) => (Step::LinkUp, Step::PairRemoved),
        Op::Table(TableChange::Guards(_)) => (Step::GuardWritten, Step::GuardRemoved),
        Op::Table(TableChange::Endpoints(_)) => (Step::EndpointWritten, Step::EndpointRemoved),
        Op::Table(TableChange::Frontends(_)) => (Step::FrontendsWritten, Step::FrontendsRemoved),
        Op::Table(_) => return None,
        Op::Route(_) => (Step::RouteSet, Step::RouteRemoved),
    };
    Some(if op.is_removal() { removed } else { made })
}
