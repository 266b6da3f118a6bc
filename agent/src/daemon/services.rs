//! The services of the cluster and their endpoints, as the source told them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use podwire_core::features::{Places, Scope, desired};
use podwire_core::plan::{Removals, plan};
use podwire_core::services::list::{ServiceChanges, ServiceList, ServiceProblem};
use podwire_core::services::{
    EndpointSlice, HealthCheck, ServedPort, Service, ServiceName, ThisNode, health_check, served_ports,
};
use tokio::sync::watch;
use tracing::error;

use super::host::Upkeep;
use super::state::State;
use crate::conditions::{Condition, ConditionName, Conditions, Severity};
use crate::dataplane::stale_sockets::Wake;
use crate::events::ServiceHealth;
use crate::frontends::Snapshot;
use crate::memory;

/// The services whose operations are planned at once: a plan of 10,000 services takes 20 MB.
const AT_ONCE: usize = 500;

/// The services, and the slices of each.
#[derive(Debug, Default)]
pub(super) struct Services {
    services: BTreeMap<ServiceName, Arc<Service>>,
    /// Slices by service, also those of services that are not known; of each service sorted by name.
    slices: BTreeMap<ServiceName, Vec<Arc<EndpointSlice>>>,
    /// The health checks of the services that have one.
    checks: Arc<BTreeMap<ServiceName, HealthCheck>>,
    /// Where pods and nodes are: from one change of services to the next, unless anything else has
    /// happened in between. It takes long to collect in a large cluster.
    places: Option<Places>,
    health: watch::Sender<ServiceHealth>,
    /// Told of each change. Processes' sockets may have lost their backends.
    closer: Option<Wake>,
}

impl Services {
    /// Takes a complete list. Returns the services that are new, changed or gone, and those with
    /// other endpoints.
    pub(super) fn take(&mut self, list: ServiceList) -> BTreeSet<ServiceName> {
        let services = list.services.into_iter().map(|service| (service.name.clone(), service)).collect();
        let mut slices: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for slice in list.slices {
            let name = slice.name.clone();
            replace(slices.entry(slice.service.clone()).or_default(), &name, Some(slice));
        }
        let old_services = std::mem::replace(&mut self.services, services);
        let old_slices = std::mem::replace(&mut self.slices, slices);
        let of_services = old_services.keys().chain(self.services.keys());
        let names: BTreeSet<_> = of_services.chain(old_slices.keys()).chain(self.slices.keys()).collect();
        let is_other = |name: &&ServiceName| {
            self.services.get(*name) != old_services.get(*name)
                || self.slices.get(*name) != old_slices.get(*name)
        };
        names.into_iter().filter(is_other).cloned().collect()
    }

    /// Takes what has changed. Returns the same as [`Self::take`].
    pub(super) fn change(&mut self, changes: ServiceChanges) -> BTreeSet<ServiceName> {
        let mut changed = BTreeSet::new();
        for (name, service) in changes.services {
            match service {
                Some(service) => drop(self.services.insert(name.clone(), service)),
                None => drop(self.services.remove(&name)),
            }
            changed.insert(name);
        }
        for (name, slice) in changes.slices {
            let slices = self.slices.entry(name.service.clone()).or_default();
            replace(slices, &name.name, slice);
            if slices.is_empty() {
                self.slices.remove(&name.service);
            }
            changed.insert(name.service);
        }
        changed
    }

    /// Returns what this node serves of a service, and notes its health check. `None`: there is no
    /// such service.
    fn served(&mut self, name: &ServiceName, node: &ThisNode) -> Option<Vec<ServedPort>> {
        let service = self.services.get(name);
        let slices = self.slices.get(name).into_iter().flatten();
        let slices: Vec<_> = slices.map(Arc::as_ref).collect();
        let check = service.and_then(|service| health_check(service, &slices, node));
        if self.checks.get(name) != check.as_ref() {
            let checks = Arc::make_mut(&mut self.checks);
            checks.remove(name);
            checks.extend(check.map(|check| (name.clone(), check)));
        }
        service.map(|service| served_ports(service, &slices, node))
    }

    /// Makes the programs serve what has changed: these services, or all of them if this node itself
    /// has changed. Returns whether the caller has to reconcile everything: the networks of services
    /// count only while there are services.
    pub(super) async fn serve(
        &mut self,
        state: &mut State,
        upkeep: &mut Upkeep,
        changed: &BTreeSet<ServiceName>,
    ) -> bool {
        let were_none = state.model.services.is_empty();
        let node = this_node(state);
        // The API servers' own addresses are not for processes, whichever service has them.
        let is_of_all = changed.iter().any(ServiceName::is_kubernetes);
        let all = if is_of_all { self.names() } else { BTreeSet::new() };
        let changed: BTreeSet<_> = changed.iter().chain(&all).collect();
        let places = self.places.take().unwrap_or_else(|| Places::of(&state.model));
        let changed: Vec<_> = changed.into_iter().collect();
        for some in changed.chunks(AT_ONCE) {
            self.serve_some(state, upkeep, some, &node, &places).await;
        }
        self.places = Some(places);
        self.wake_closer();
        if changed.len() > AT_ONCE {
            memory::give_back();
        }
        let has_begun_or_ended = state.model.services.is_empty() != were_none;
        has_begun_or_ended && state.model.own.is_some() && !state.model.service_networks.is_empty()
    }

    async fn serve_some(
        &mut self,
        state: &mut State,
        upkeep: &mut Upkeep,
        changed: &[&ServiceName],
        node: &ThisNode,
        places: &Places,
    ) {
        let served: Vec<_> = changed.iter().map(|name| (*name, self.served(name, node))).collect();
        let concerned = served
            .iter()
            .flat_map(|(name, ports)| state.model.services.concerned(name, ports.as_deref().unwrap_or(&[])));
        let concerned: BTreeSet<_> = concerned.collect();
        let names: Vec<_> = concerned.iter().collect();
        let mut reached = desired(&state.model, Scope::Services(&names, places));
        for (name, ports) in served {
            state.model.services.set(name, ports);
        }
        // Before the first node list nobody knows which backends are pods. The agent compares
        // everything when it comes.
        if state.model.own.is_none() {
            return;
        }
        let want = desired(&state.model, Scope::Services(&names, places));
        let ops = plan(&want, &reached, Removals::Allowed);
        if let Err(error) = state.executor.run_all(ops, &mut reached).await {
            error!("could not apply the changes of {} services: {error}", changed.len());
            upkeep.unsettle();
        }
    }

    /// Forgets where pods and nodes are. Call it when that may have changed.
    pub(super) fn forget_places(&mut self) {
        self.places = None;
    }

    /// Lets the closer look at the sockets.
    pub(super) fn wake_closer(&self) {
        if let Some(closer) = &self.closer {
            closer.wake();
        }
    }

    /// Tells the closer of sockets of each change from now on.
    pub(super) fn set_closer(&mut self, closer: Wake) {
        self.closer = Some(closer);
    }

    /// Returns all services, for `podwire services`.
    pub(super) fn snapshot(&self, state: &State) -> Snapshot {
        let with_slices = |(name, service): (&ServiceName, &Arc<Service>)| {
            let slices = self.slices.get(name).into_iter().flatten();
            (Arc::clone(service), slices.cloned().collect())
        };
        Snapshot {
            services: self.services.iter().map(with_slices).collect(),
            node: this_node(state),
            places: Places::of(&state.model),
            has_policies: !state.model.policies.is_empty(),
        }
    }

    /// Returns a receiver that gets what load balancers may know, now and after every change.
    pub(super) fn health(&self) -> watch::Receiver<ServiceHealth> {
        self.health.subscribe()
    }

    /// Publishes what load balancers may know, if it has changed.
    #[expect(clippy::disallowed_methods, reason = "operators read the time of day")]
    pub(super) fn tell_health(&self, state: &State, is_leaving: bool) {
        // Not for a failed write: one service too many for the tables must not take all nodes away.
        let cuts_off = |condition: Condition<'_>| condition.name.severity() == Severity::CutOff;
        let is_healthy =
            state.has_services && state.model.own.is_some() && !state.conditions.iter().any(cuts_off);
        self.health.send_if_modified(|told| {
            let has_changed =
                told.is_healthy != is_healthy || told.is_leaving != is_leaving || told.checks != self.checks;
            if told.is_healthy && !is_healthy {
                told.last_healthy = Timestamp::now();
            }
            (told.is_healthy, told.is_leaving) = (is_healthy, is_leaving);
            told.checks = Arc::clone(&self.checks);
            has_changed
        });
    }

    /// Returns the names of all services.
    pub(super) fn names(&self) -> BTreeSet<ServiceName> {
        self.services.keys().cloned().collect()
    }

    /// Returns the number of services.
    pub(super) fn len(&self) -> usize {
        self.services.len()
    }

    /// Returns the number of endpoints of all services, usable or not. An endpoint with addresses of
    /// both families counts twice: each family has its own slices.
    pub(super) fn endpoints(&self) -> usize {
        let of_services = self.services.keys().filter_map(|name| self.slices.get(name));
        of_services.flatten().map(|slice| slice.endpoints.len()).sum()
    }
}

/// Replaces the slice with this name. `None`: it is gone.
fn replace(slices: &mut Vec<Arc<EndpointSlice>>, name: &str, slice: Option<Arc<EndpointSlice>>) {
    match (slices.binary_search_by(|there| there.name.as_str().cmp(name)), slice) {
        (Ok(index), Some(slice)) => slices[index] = slice,
        (Ok(index), None) => drop(slices.remove(index)),
        (Err(index), Some(slice)) => slices.insert(index, slice),
        (Err(_), None) => {}
    }
}

/// Returns what the choice of backends needs of this node.
fn this_node(state: &State) -> ThisNode {
    let own = state.model.own.as_ref();
    ThisNode {
        name: state.config.node_name.clone(),
        zone: state.model.zone.clone(),
        addresses: own.map(|own| own.internal_addresses.clone()).unwrap_or_default(),
    }
}

/// Sets the conditions that follow from a complete list, and ends those that do not.
pub(super) fn note_list(conditions: &mut Conditions, list: &ServiceList) {
    note_problems(conditions, &list.problems);
    if list.age.is_zero() {
        confirm(conditions);
    } else {
        let why = conditions.of(ConditionName::ServiceListStale).next();
        let why = why.map_or("the services may be out of date", |why| why.sentence).to_owned();
        do_without(conditions, &why, true);
    }
}

/// Notes the objects that do not decode.
pub(super) fn note_problems(conditions: &mut Conditions, problems: &[ServiceProblem]) {
    let sentences = problems.iter().map(|problem| (problem.entry.clone(), problem.to_string()));
    conditions.replace(ConditionName::ServiceProblem, sentences);
}

/// Notes that the services cannot be read, for this reason. `has_some`: there are some from before.
pub(super) fn do_without(conditions: &mut Conditions, reason: &str, has_some: bool) {
    let used = if has_some { "; the last good services are used" } else { "" };
    conditions.set(ConditionName::ServiceListStale, format!("{reason}{used}"));
}

/// Notes at which addresses the agent cannot answer load balancers' health checks.
pub(super) fn note_health_ports(conditions: &mut Conditions, failed: BTreeMap<SocketAddr, String>) {
    let failed = failed.into_iter().map(|(address, why)| (address.to_string(), why));
    conditions.replace(ConditionName::ServiceHealthPort, failed);
}

/// Notes that the services are current.
pub(super) fn confirm(conditions: &mut Conditions) {
    conditions.clear(ConditionName::ServiceListStale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_core::services::list::SliceName;
    use podwire_core::services::{Endpoint, TrafficPolicy};

    fn name(name: &str) -> ServiceName {
        ServiceName { namespace: "shop".into(), name: name.into() }
    }

    fn service(of: &str, address: [u8; 4]) -> Arc<Service> {
        Arc::new(Service {
            name: name(of),
            cluster_ips: vec![address.into()],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_port: None,
        })
    }

    fn slice(of: &str, slice: &str, endpoints: u8) -> Arc<EndpointSlice> {
        let endpoint = |last| Endpoint {
            address: [10, 244, 0, last].into(),
            is_ready: true,
            is_serving: true,
            is_terminating: false,
            node: None,
            hints: None,
        };
        Arc::new(EndpointSlice {
            name: slice.into(),
            service: name(of),
            ports: Vec::new(),
            endpoints: (0..endpoints).map(endpoint).collect(),
        })
    }

    fn list(services: &[&Arc<Service>], slices: &[&Arc<EndpointSlice>]) -> ServiceList {
        ServiceList {
            services: services.iter().copied().cloned().collect(),
            slices: slices.iter().copied().cloned().collect(),
            ..ServiceList::default()
        }
    }

    fn names<const N: usize>(names: [&str; N]) -> BTreeSet<ServiceName> {
        names.map(name).into()
    }

    #[test]
    fn a_list_names_what_differs_from_the_one_before() {
        let mut services = Services::default();
        let [web, db, old] = ["web", "db", "old"].map(|of| service(of, [10, 96, 0, 1]));
        let [web_a, db_a, other] =
            [("web", 2), ("db", 3), ("other", 4)].map(|(of, count)| slice(of, "a", count));
        let first = list(&[&web, &db, &old], &[&web_a, &db_a, &other]);
        assert_eq!(services.take(first), names(["db", "old", "other", "web"]));
        assert_eq!((services.len(), services.endpoints()), (3, 5));
        // An equal object is no change, even if it was decoded again.
        let web_again = service("web", [10, 96, 0, 1]);
        let (moved, db_b) = (service("db", [10, 96, 0, 2]), slice("web", "b", 1));
        let second = list(&[&web_again, &moved], &[&web_a, &db_a, &other]);
        assert_eq!(services.take(second), names(["db", "old"]));
        assert_eq!(services.take(list(&[&web, &moved], &[&web_a, &db_b])), names(["db", "other", "web"]));
        assert_eq!((services.len(), services.endpoints()), (2, 3));
    }

    #[test]
    fn changes_come_to_the_same_as_a_list() {
        let mut services = Services::default();
        let (web, db) = (service("web", [10, 96, 0, 1]), service("db", [10, 96, 0, 2]));
        services.take(list(&[&web], &[&slice("web", "a", 2), &slice("web", "b", 1)]));
        let of = |service: &str, slice: &str| SliceName { service: name(service), name: slice.into() };
        let changes = ServiceChanges {
            services: [(name("web"), None), (name("db"), Some(Arc::clone(&db)))].into(),
            // The slice b belongs to another service now.
            slices: [(of("web", "b"), None), (of("db", "b"), Some(slice("db", "b", 4)))].into(),
            problems: None,
        };
        assert_eq!(services.change(changes), names(["db", "web"]));
        assert_eq!((services.len(), services.endpoints()), (1, 4));
        let same = list(&[&db], &[&slice("web", "a", 2), &slice("db", "b", 4)]);
        assert_eq!(services.take(same), names([]));
        let last = ServiceChanges { slices: [(of("web", "a"), None)].into(), ..ServiceChanges::default() };
        assert_eq!(services.change(last), names(["web"]));
        assert!(!services.slices.contains_key(&name("web")), "nothing of it stays");
    }
}
