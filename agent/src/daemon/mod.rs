//! The one owner of state. Everything else sends it events.

mod attempts;
mod calls;
mod check;
mod cni_configuration;
mod firewall;
mod node_calls;
mod nodes;
mod other_pods;
mod reconcile;
mod start;
mod state_folder;
mod sweep;
mod switches;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use ipnet::Ipv4Net;
use podwire_cni::protocol::Attachment;
use podwire_common::abi::Holder;
use podwire_common::addr::Addr;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use crate::before::Before;
use crate::conditions::{ConditionName, Conditions};
use crate::config::Config;
use crate::conntrack::Conntrack;
use crate::dataplane::Dataplane;
use crate::dataplane::attach::UplinkAttachment;
use crate::dataplane::flows::{Collected, Collector};
use crate::dataplane::maps::Counters;
use crate::error::Error;
use crate::events::{Event, Figures, Readiness, Repair, Unheeded};
use crate::host::Host;
use crate::ipam::Pool;
use crate::links::{Changes, Links};
use crate::lock::Lock;
use crate::model::Model;
use crate::nodes::Skipped;
use crate::store::Store;
use crate::strays::Strays;

/// The one owner of state.
pub struct Daemon {
    config: Config,
    uplink_attachment: UplinkAttachment,
    /// Where the programs of this node's own processes are attached, if anywhere.
    cgroup: Option<PathBuf>,
    store: Store,
    state_folder: state_folder::StateFolder,
    /// What the node was like before the agent changed it, as the state folder had it last.
    before: Before,
    /// Of the folder of pins.
    bpf_lock: Lock,
    links: Links,
    changes: Changes,
    /// When the kernel was last found, or made, as it is wanted; `None`: not yet, or no longer.
    settled: Option<Instant>,
    dataplane: Dataplane,
    model: Model,
    /// `None` until this node's podCIDR is known; then it stays, whatever becomes of the node list.
    pool: Option<Pool>,
    host: Arc<Host>,
    /// What the last round of ageing found.
    collected: Collected,
    /// Uplinks that have this process's programs, by ifindex.
    attached: BTreeMap<u32, String>,
    /// Nodes that have no part in the pod network.
    skipped: BTreeMap<String, Skipped>,
    /// Whether a complete node list of now was seen: nothing is deleted before.
    complete: bool,
    /// How good the last node list is.
    list: nodes::NodeListState,
    /// Of new pods, bytes: what the ways to all the nodes leave, which are many.
    pod_mtu: Option<u32>,
    /// When the ways to the other nodes were last asked for.
    paths_asked: Option<Instant>,
    /// Whether anything has changed since then.
    paths_doubtful: bool,
    /// Devices that no endpoint owns.
    strays: Strays,
    /// Programs that were attached again.
    reattached: u64,
    /// What else was put back.
    repairs: BTreeMap<Repair, u64>,
    /// Kernel switches that were set again.
    switches_set_again: u64,
    /// Operations by which maps and routes were changed.
    operations: u64,
    /// Everything that is wrong.
    conditions: Conditions,
    firewall: firewall::Firewall,
    other_pods: other_pods::OtherPods,
    cni_configuration: Option<cni_configuration::CniConfiguration>,
    /// Whose device was not found, and since when.
    missed: BTreeMap<Attachment, Instant>,
    /// ADDs that are done but for the disk.
    adding: BTreeMap<Attachment, calls::Adding>,
    saving: JoinSet<calls::Saved>,
    /// Whether the kernel was made as it is wanted since a condition last kept ADD from being served.
    is_set_up: bool,
    readiness: watch::Sender<Readiness>,
}

impl Daemon {
    /// Whether the agent is ready, now and after every change.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Serves events until [`Event::Stop`], or until nobody can send any more.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.try_state_folder();
        loop {
            self.tell_readiness();
            let event = tokio::select! {
                biased;
                Some(saved) = self.saving.join_next() => {
                    self.finish_saved(saved).await;
                    continue;
                }
                Some(outcome) = self.state_folder.outcome() => {
                    self.take_trial(outcome);
                    continue;
                }
                event = events.recv() => event,
            };
            let Some(event) = event else { break };
            if !self.can_overlap(&event) {
                self.finish_all_saved().await;
            }
            match event {
                // Its plugin has given up, or is dead: it has taken its link back, or the next ADD or the sweep will.
                Event::Call { call, reply } if reply.is_closed() => debug!(?call, "nobody waits for it"),
                Event::Call { call, reply } => self.serve(&call, reply).await,
                Event::Nodes(list) => self.take_nodes(list).await,
                Event::NodeListUnusable(reason) => self.do_without_nodes(reason),
                Event::NodeListConfirmed => self.confirm_nodes(),
                Event::NonMasquerade(Ok(networks)) => self.take_non_masquerade(networks).await,
                Event::NonMasquerade(Err(reason)) => {
                    self.conditions.set(ConditionName::NonMasqueradeFile, reason);
                }
                Event::ConfigFile(compared) => self.take_config_file(compared),
                Event::Tick => self.tick().await,
                Event::Collected(collected) => self.take_collected(collected),
                Event::Alive(reply) => drop(reply.send(())),
                Event::Conditions(reply) => drop(reply.send(self.conditions.clone())),
                Event::Figures(reply) => {
                    let _ = reply.send(self.figures());
                }
                Event::Stop => break,
            }
        }
        self.finish_all_saved().await;
        info!("stopped; pods keep their network");
    }

    async fn take_non_masquerade(&mut self, networks: BTreeSet<Ipv4Net>) {
        info!(networks = networks.len(), "the list of networks that are not masqueraded was read");
        self.conditions.clear(ConditionName::NonMasqueradeFile);
        self.model.non_masquerade = self.config.non_masquerade(networks);
        if self.model.own.is_some() {
            let _ = self.reconcile().await;
        }
    }

    async fn tick(&mut self) {
        self.firewall.tick(&mut self.conditions);
        if let Some(configuration) = &mut self.cni_configuration {
            let written_again = configuration.look(&mut self.conditions);
            self.count_repairs(Repair::CniConfiguration, written_again.into());
        }
        self.try_state_folder();
        self.look_after_other_pods().await;
        self.look_after_links_and_pins();
        self.look_after_switches();
        if !self.may_differ() {
            return;
        }
        if self.model.own.is_some() {
            let _ = self.reconcile().await;
            return;
        }
        // Before the first node list only what is gone is released.
        match self.links.host().await {
            Ok(host) => {
                self.sweep(&host).await;
                self.put_names_back(&host).await;
            }
            Err(error) => error!("{error}"),
        }
    }

    /// What ages the tables out beside this owner.
    ///
    /// # Errors
    /// [`Error::Map`].
    pub fn collector(&mut self) -> Result<Collector, Error> {
        let conntrack = Conntrack::open().map_err(|error| {
            let sentence = format!(
                "flows through the host stack leave after fixed times: no connection tracking to ask: {error}"
            );
            self.conditions.set(ConditionName::ConntrackUnavailable, sentence);
        });
        self.dataplane.maps.collector(conntrack.ok())
    }

    fn take_collected(&mut self, collected: Collected) {
        let is_nearly_full = "the table of translations is nearly full: what is over leaves sooner";
        self.conditions.update(
            ConditionName::TranslationsNearlyFull,
            collected.pressure.then(|| is_nearly_full.to_owned()),
        );
        let crowded = collected.crowded.iter().map(|holder| {
            let sentence = format!(
                "{} has nearly used its share of the table of translations: its flows that are over or not established leave sooner, and new ones may be refused (translation-share-used)",
                self.name_of(holder)
            );
            let Holder { address, port, protocol, .. } = holder;
            (format!("{address:?} {port:?} {protocol}"), sentence)
        });
        let crowded: Vec<_> = crowded.collect();
        self.conditions.replace(ConditionName::HolderCrowded, crowded);
        if let Err(error) = self.dataplane.maps.clear_stack_only(&collected.recorded) {
            error!("housekeeping: {error}");
        }
        self.collected = collected;
    }

    /// Who holds entries of a table, for the log.
    fn name_of(&self, holder: &Holder) -> String {
        let pod =
            self.model.endpoints.values().find(|endpoint| Addr::from(endpoint.address) == holder.address);
        match pod {
            None if holder.address == Addr::UNSPECIFIED => "this node".to_owned(),
            None => format!("{:?}, which is no pod's any more,", holder.address),
            Some(pod) if holder.protocol == 0 => pod.to_string(),
            Some(pod) => format!("the hostPort that leads to port {} of {pod}", holder.port.get()),
        }
    }

    /// What others had changed is as it was again.
    fn count_repairs(&mut self, what: Repair, count: u64) {
        *self.repairs.entry(what).or_default() += count;
    }

    fn figures(&self) -> Figures {
        let counters = self.dataplane.maps.counters().unwrap_or_else(|error| {
            error!("read the counters: {error}");
            Counters::default()
        });
        Figures {
            counters,
            endpoints: self.model.endpoints.len(),
            nodes: self.model.remote.len() + usize::from(self.model.own.is_some()),
            skipped: self.skipped.values().fold(BTreeMap::new(), |mut counts, reason| {
                *counts.entry(*reason).or_default() += 1;
                counts
            }),
            node_list_age: self.list.age(),
            addresses: self.pool.as_ref().map_or(0, Pool::size),
            collected: self.collected.clone(),
            reattached: self.reattached,
            repairs: self.repairs.clone(),
            switches_set_again: self.switches_set_again,
            operations: self.operations,
            conditions: self.conditions.counts(),
            forward_policy_drops: self
                .conditions
                .of(ConditionName::FirewallDrops)
                .map(|condition| condition.subject.to_owned())
                .collect(),
            cni_configuration_first: self
                .cni_configuration
                .as_ref()
                .map(|configuration| configuration.is_first()),
        }
    }

    /// After every event, and before the next one is waited for.
    fn tell_readiness(&mut self) {
        self.is_set_up &= self.conditions.refusal().is_none();
        if let Some(configuration) = &mut self.cni_configuration
            && self.conditions.unready().is_none()
        {
            configuration.begin(&mut self.conditions);
        }
        let unready = self.conditions.unready();
        let readiness = unready.map_or(Readiness::Ready, |why| Readiness::Waiting(why.sentence.to_owned()));
        let changed = self.readiness.send_if_modified(|now| {
            let changed = *now != readiness;
            *now = readiness;
            changed
        });
        match unready {
            _ if !changed => {}
            None => info!("ready"),
            Some(why) => warn!(condition = why.name.name(), "not ready"),
        }
    }

    /// Options are parsed once: what a later file says counts for the next agent.
    fn take_config_file(&mut self, compared: Result<Unheeded, String>) {
        let conditions = &mut self.conditions;
        let unusable = compared.as_ref().err();
        conditions.update(
            ConditionName::ConfigFileUnusable,
            unusable.map(|reason| {
                format!("{reason}; the agent goes on as it is, but could not be started again")
            }),
        );
        let Ok(Unheeded { changed, overridden }) = compared else { return };
        let sentence = |options: &[String], what| {
            (!options.is_empty()).then(|| format!("{what}: {}", options.join(", ")))
        };
        conditions.update(
            ConditionName::ConfigFileOverridden,
            sentence(&overridden, "--config has options without effect, as the command line or the environment, which come first, say otherwise"),
        );
        conditions.update(
            ConditionName::ConfigFileDiffers,
            sentence(&changed, "--config says otherwise than what the agent runs with, and takes effect when the agent is restarted"),
        );
        if changed.is_empty() {
            info!("the agent runs with what counts of --config");
        }
    }
}
