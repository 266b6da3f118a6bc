//! The only owner of state. Everything else sends it events.
//!
//! Each component owns its own state, and works on the shared [`State`] while it is called. Calls
//! go one way: `cluster` → `host` → `pods` → `state`, `executor`, `found`; `health` →
//! `configuration`.

mod attempts;
mod cluster;
mod configuration;
mod executor;
mod flows;
mod found;
mod health;
mod host;
mod names;
mod pods;
mod services;
mod state;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use podwire_cni::fault::Step;
use podwire_cni::protocol::{Call, Reply};
use podwire_core::ipam::IpamError;
use podwire_core::model::{Endpoint, Family, Model};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

use crate::before::Before;
use crate::claim::Claim;
use crate::conditions::{ConditionName, Conditions};
use crate::config::{Config, ServiceMode};
use crate::dataplane::conversions::CONVERSIONS;
use crate::dataplane::flows::{Collected, Collector};
use crate::dataplane::maps::Counters;
use crate::dataplane::packet_events::{self, EventRing, EventSwitch, LostEvents};
use crate::dataplane::pins;
use crate::dataplane::probe::Capabilities;
use crate::dataplane::stale_sockets::SocketCloser;
use crate::durations::Durations;
use crate::error::Error;
use crate::events::{Event, Figures, Readiness, ServiceHealth};
use crate::links::{Changes, Links};
use crate::lock::Lock;
use crate::memory;
use crate::status::{Nodes, Status};
use crate::store::{Corrupt, Store};
use crate::wire;
use cluster::NodeLists;
use configuration::Configuration;
use executor::{Executor, step};
use health::Health;
use host::Upkeep;
use pods::Pods;
use services::Services;
use state::State;

/// The only owner of state.
pub struct Daemon {
    state: State,
    pods: Pods,
    cluster: NodeLists,
    services: Services,
    host: Upkeep,
    configuration: Configuration,
    health: Health,
    /// Result of the collector's last round.
    collected: Collected,
    /// `None`: nobody has taken the ring of the programs' events.
    lost_events: Option<Arc<LostEvents>>,
    memory: status::Memory,
}

impl Daemon {
    /// Loads the programs, puts them in place of an earlier agent's, and takes over its endpoints.
    /// Deletes only the resources of pods that have lost their device, leftover pins, and a VXLAN
    /// device that does not fit the options.
    ///
    /// # Errors
    /// Anything that keeps the agent from setting up the data path.
    pub async fn start(
        config: Config,
        capabilities: &Capabilities,
        store: Store,
        bpf_lock: Lock,
    ) -> Result<Self, Error> {
        // First check maps and state: another release may have made them, and this release may
        // refuse them. The state comes after the maps, because loading it sets corrupt files aside.
        pins::check(&config.places.bpf_dir, CONVERSIONS)?;
        let (endpoints, corrupt) = store.load()?;
        Claim::own(&config.places.bpf_dir)?.save(&config.places.state_dir)?;
        // Listen before anything is listed, so that no change in between is missed.
        let changes = Changes::listen()?;
        let links = Links::new()?;
        config.places.switches().enable_forwarding(Family::V4, &[], &config.places.state_dir)?;
        if config.services == ServiceMode::On
            && let Err(error) = config.places.switches().limit_conntrack(&config.places.state_dir)
        {
            warn!("cannot set the limits of connection tracking, as kube-proxy does: {error}");
        }
        let mut model = Model::new(config.mode, config.mtu);
        model.tunnel_family = config.tunnel_family;
        model.vxlan = host::tunnel_device(&config, &links).await?;
        model.non_masquerade = config.non_masquerade(BTreeSet::new());
        model.service_networks = config.service_networks.iter().map(IpNet::trunc).collect();
        model.node_port_networks = config.node_port_addresses.iter().map(IpNet::trunc).collect();
        let dataplane = host::load(&config, model.vxlan)?;
        memory::give_back();
        step(Step::ProgramsReady)?;
        dataplane.maps.print_sizes(&config.map_sizes())?;
        let why = format!("{} has not been read yet", config.node_source());
        let before = Before::load(&config.places.state_dir)?;
        let mut daemon = Self {
            pods: Pods::default(),
            cluster: NodeLists::default(),
            services: Services::default(),
            host: Upkeep::new(capabilities, bpf_lock, changes),
            configuration: Configuration::new(&config),
            health: Health::new(&config, before, why.clone()),
            collected: Collected::default(),
            lost_events: None,
            memory: status::Memory::new(capabilities),
            state: State {
                model,
                host: Arc::new(links.host().await?),
                executor: Executor::new(links, dataplane, store, &config)?,
                conditions: Conditions::at_start(why),
                pod_mtu: None,
                repairs: BTreeMap::new(),
                durations: Durations::default(),
                is_complete: false,
                has_services: config.services == ServiceMode::Off,
                config,
            },
        };
        daemon.take_over(capabilities, endpoints, &corrupt).await?;
        // What an earlier agent's programs have dropped is not of this agent's last minute.
        daemon.memory.tick(&daemon.counters());
        Ok(daemon)
    }

    /// Takes over the pods and programs of an earlier agent.
    async fn take_over(
        &mut self,
        capabilities: &Capabilities,
        endpoints: Vec<Endpoint>,
        corrupt: &[Corrupt],
    ) -> Result<(), Error> {
        let (state, pods) = (&mut self.state, &mut self.pods);
        if let Err(why) = capabilities.host_processes() {
            let why = format!("{}: {why}", host::NO_HOST_PROCESSES);
            state.conditions.set(ConditionName::HostProcesses, why);
        }
        pods.restore(state, endpoints, corrupt).await?;
        let host = Arc::clone(&state.host);
        if pods.put_names_back(state, &host).await {
            state.host = Arc::new(state.executor.links.host().await?);
        }
        self.host.replace_programs(state, pods).await?;
        self.health.look_at_firewall(state);
        Ok(())
    }

    /// Notes where the agent asks the API server. Call it before there are services.
    pub fn note_api_server(&mut self, address: Option<SocketAddr>) {
        self.state.model.api_server = address;
    }

    /// Returns a receiver that gets the readiness now and after every change.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.health.readiness()
    }

    /// Returns a receiver that gets what load balancers may know, now and after every change.
    pub fn service_health(&self) -> watch::Receiver<ServiceHealth> {
        self.services.health()
    }

    /// Returns the histograms of durations. The server of the plugin's socket measures its calls.
    pub fn durations(&self) -> Durations {
        self.state.durations.clone()
    }

    /// Returns the collector, which removes stale entries from the tables. It runs in a thread of
    /// its own.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub fn collector(&mut self) -> Result<Collector, Error> {
        flows::collector(&mut self.state)
    }

    /// Returns the closer of processes' sockets whose backend no longer serves.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub fn socket_closer(&mut self) -> Result<SocketCloser, Error> {
        let (closer, wake) = self.state.executor.dataplane.maps.socket_closer()?;
        self.services.set_closer(wake);
        Ok(closer)
    }

    /// Returns the ring of the programs' events, and the switch for what they write. There is one
    /// reader, so this works once.
    ///
    /// # Errors
    /// [`Error::Dataplane`].
    pub fn event_ring(&mut self) -> Result<(EventRing, EventSwitch), Error> {
        let (ring, lost, switch) = packet_events::take(&mut self.state.executor.dataplane.ebpf)?;
        self.lost_events = Some(lost);
        Ok((ring, switch))
    }

    /// Serves events until [`Event::Stop`], or until all senders are gone.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        self.health.state_folder.try_it(&mut self.state);
        loop {
            self.tell_readiness();
            let event = tokio::select! {
                biased;
                Some(joined) = self.state.executor.joined() => {
                    self.pods.finish_joined(&mut self.state, joined).await;
                    continue;
                }
                Some(outcome) = self.health.state_folder.outcome() => {
                    self.health.state_folder.take_trial(&mut self.state, outcome);
                    continue;
                }
                event = events.recv() => event,
            };
            let Some(event) = event else { break };
            if !self.pods.can_overlap(&event) {
                self.pods.finish_all_joined(&mut self.state).await;
            }
            if let Event::Stop = event {
                break;
            }
            self.take(event).await;
        }
        self.pods.finish_all_joined(&mut self.state).await;
        info!("stopped; pods keep their network");
    }

    async fn take(&mut self, event: Event) {
        let Self { state, pods, cluster, services, host, health, .. } = self;
        if !matches!(event, Event::ServicesChanged(_)) {
            services.forget_places();
        }
        match event {
            // The plugin has given up, or is dead. It has removed its link, or the next ADD or the
            // sweep will.
            Event::Call { call, reply } if reply.is_closed() => debug!(?call, "dropped: plugin has given up"),
            Event::Call { call, reply } => self.serve(&call, reply).await,
            Event::Nodes(list) => {
                let begun = Instant::now();
                let before = (state.model.own.clone(), state.model.zone.clone());
                let is_applied = cluster.take(state, host, pods, list).await;
                // Which backends a service has depends on this node's addresses and zone.
                if (&state.model.own, &state.model.zone) != (&before.0, &before.1) {
                    services.serve(state, host, &services.names()).await;
                }
                state.durations.note_node_list(is_applied, begun.elapsed());
                // With the first list, the agent has switched forwarding of its families on.
                health.state_folder.remember(state);
            }
            Event::NodeListUnusable(reason) => cluster.do_without(state, reason),
            Event::NodeListConfirmed => cluster.confirm(state),
            Event::Services(list) => {
                services::note_list(&mut state.conditions, &list);
                let changed = services.take(list);
                debug!(changed = changed.len(), services = services.len(), "service list taken");
                state.has_services = true;
                if services.serve(state, host, &changed).await {
                    let _ = host.reconcile(state, pods).await;
                    services.forget_places();
                }
                info!(services = services.len(), "service list applied");
            }
            Event::ServicesChanged(changes) => {
                if let Some(problems) = &changes.problems {
                    services::note_problems(&mut state.conditions, problems);
                }
                let changed = services.change(changes);
                debug!(changed = changed.len(), services = services.len(), "services changed");
                if services.serve(state, host, &changed).await {
                    let _ = host.reconcile(state, pods).await;
                    services.forget_places();
                }
            }
            Event::ServicesUnusable(reason) => {
                services::do_without(&mut state.conditions, &reason, services.len() > 0);
            }
            Event::ServicesConfirmed => services::confirm(&mut state.conditions),
            Event::HealthPorts(failed) => services::note_health_ports(&mut state.conditions, failed),
            Event::NonMasquerade(networks) => {
                if configuration::take_non_masquerade(state, networks) && state.model.own.is_some() {
                    let _ = host.reconcile(state, pods).await;
                }
            }
            Event::ConfigFile(compared) => {
                configuration::take_config_file(&mut state.conditions, compared);
            }
            Event::Tick => {
                // A change that failed at first may have been made since.
                services.wake_closer();
                self.tick().await;
            }
            Event::LinksChanged => host.look_at_changes(state, pods).await,
            Event::Collected(collected) => {
                flows::take(state, &collected);
                self.collected = collected;
            }
            Event::Alive(reply) => drop(reply.send(())),
            Event::Conditions(reply) => drop(reply.send(state.conditions.clone())),
            Event::Figures(reply) => drop(reply.send(self.figures())),
            Event::Status(reply) => drop(reply.send(Box::new(self.status()))),
            Event::Names(reply) => drop(reply.send(names::of(&state.model))),
            Event::Frontends(reply) => {
                let is_on = state.config.services == ServiceMode::On;
                drop(reply.send(is_on.then(|| services.snapshot(state))));
            }
            Event::Stop => {}
        }
    }

    /// Does what the plugin asks for. Some ADDs and DELs are answered later.
    async fn serve(&mut self, call: &Call, reply: oneshot::Sender<Reply>) {
        let (state, pods) = (&mut self.state, &mut self.pods);
        let result = match call {
            Call::Add(add) => return pods.add(state, add, reply).await,
            Call::Propose(add) => pods::proposed(state, add).map(|_| Reply::Acceptable),
            Call::Del(attachment) => return pods.del(state, &wire::attachment(attachment), reply).await,
            Call::Check(attachment) => {
                pods::check(state, &wire::attachment(attachment)).await.map(Reply::Checked)
            }
            Call::Status => {
                // No line in the log: a runtime asks every few seconds, and changes are logged when
                // they happen.
                let status = health::status(state);
                return drop(reply.send(status.map_or_else(Reply::Failed, |()| Reply::Serving)));
            }
            Call::Gc(gc) => pods.collect_garbage(state, gc).await.map(Reply::Collected),
        };
        pods::answer(reply, result);
    }

    async fn tick(&mut self) {
        self.memory.tick(&self.counters());
        let Self { state, pods, host, configuration, health, .. } = self;
        configuration.tick(state);
        health.tick(state);
        pods.other.tick(state).await;
        host.look_after_links_and_pins(state).await;
        host.look_after_switches(state);
        if !host.may_differ(pods) {
            return;
        }
        if state.model.own.is_some() {
            let _ = host.reconcile(state, pods).await;
            return;
        }
        // Before the first node list, only release pods without a device, and put names back.
        match state.executor.links.host().await {
            Ok(look) => {
                pods.sweep(state, &look).await;
                pods.put_names_back(state, &look).await;
            }
            Err(error) => error!("{error}"),
        }
    }

    /// Publishes the readiness. Called after every event, before the next one is awaited.
    fn tell_readiness(&mut self) {
        if self.pods.take_disk_failure() {
            self.health.state_folder.try_it(&mut self.state);
        }
        let exhausted = match self.state.executor.pools.has_free() {
            Err(error @ IpamError::Exhausted { .. }) => Some(error.to_string()),
            _ => None,
        };
        self.state.conditions.update(ConditionName::NoFreeAddress, exhausted);
        if self.state.conditions.refusal().is_some() {
            self.host.note_refusal();
        }
        self.health.tell(&mut self.state.conditions, &mut self.configuration);
        self.services.tell_health(&self.state, self.cluster.is_leaving());
    }

    fn counters(&self) -> Counters {
        self.state.executor.dataplane.maps.counters().unwrap_or_else(|error| {
            error!("could not read the counters: {error}");
            Counters::default()
        })
    }

    /// Returns the number of nodes in the pod network, this one included.
    fn nodes(&self) -> usize {
        self.state.model.remote.len() + usize::from(self.state.model.own.is_some())
    }

    fn status(&self) -> Status {
        let state = &self.state;
        let skipped = self.cluster.skipped().into_iter();
        Status {
            agent: Some(self.memory.agent(state)),
            kernel: Some(self.memory.kernel()),
            modes: Some(status::modes(state)),
            links: status::links(&state.model),
            nodes: Nodes {
                used: self.nodes(),
                skipped: skipped.map(|(reason, count)| (reason.name().into(), count)).collect(),
                source: Some(state.config.node_source()),
                age_seconds: Some(self.cluster.age().as_secs()),
            },
            endpoints: state.model.endpoints.len(),
            addresses: status::pools(state),
            drops: self.memory.drops(&self.counters()),
            conditions: status::conditions(&state.conditions),
            // The command reads them.
            ..Status::default()
        }
    }

    fn figures(&self) -> Figures {
        let State { model, executor, conditions, .. } = &self.state;
        let memory = executor.dataplane.maps.memory().unwrap_or_else(|error| {
            error!("could not read how much memory the maps take: {error}");
            BTreeMap::new()
        });
        let mut collected = self.collected.clone();
        collected.fill.extend(executor.dataplane.maps.fill());
        let events_lost = self.lost_events.as_deref().map(LostEvents::read).transpose();
        let events_lost = events_lost.unwrap_or_else(|error| {
            error!("could not read how many events were lost: {error}");
            None
        });
        let firewall_drops = conditions.of(ConditionName::FirewallDrops);
        Figures {
            counters: self.counters(),
            endpoints: model.endpoints.len(),
            nodes: self.nodes(),
            skipped: self.cluster.skipped(),
            node_list_age: self.cluster.age(),
            services: (self.state.config.services == ServiceMode::On)
                .then(|| (self.services.len(), self.services.endpoints())),
            addresses: executor.pools.size(),
            collected,
            memory,
            durations: self.durations(),
            reattached: self.host.reattached(),
            repairs: self.state.repairs.clone(),
            switches_set_again: self.host.switches_set_again(),
            operations: executor.operations(),
            conditions: conditions.counts(),
            events_lost: events_lost.unwrap_or_default(),
            forward_policy_drops: firewall_drops.map(|condition| condition.subject.to_owned()).collect(),
            cni_configuration_first: self.configuration.is_cni_first(),
        }
    }
}
