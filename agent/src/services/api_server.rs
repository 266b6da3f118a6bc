//! Gets Services and EndpointSlices from the API server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podwire_core::services::list::{ServiceChanges, ServiceList, ServiceProblem, SliceName};
use podwire_core::services::{EndpointPort, EndpointSlice, Service, ServiceName};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::objects::{self, Entries, Item};
use crate::events::Event;
use crate::objects::Pace;
use crate::objects::client::Server;
use crate::objects::follower::{Change, follow};
use crate::objects::teller::{Objects, Teller};
use crate::objects::watched::{Kind, ObjectName};

/// Reports that wait for the teller.
const QUEUE: usize = 64;
/// How a problem names an object that has no name. No API server has one.
const UNNAMED: &str = "an entry without a name";

/// The API server as a source of services.
#[derive(Clone, Debug)]
pub struct Source {
    /// The server.
    pub server: Arc<Server>,
    /// The path of the last good list.
    pub saved: PathBuf,
    /// Time limits and pauses.
    pub pace: Pace,
}

impl Source {
    /// Returns the time limits and pauses in a cluster. Endpoints change all the time in a large
    /// cluster, so changes are told soon, and the saved list, of some 10 MB there, is written
    /// rarely.
    pub fn pace() -> Pace {
        Pace { rest: Duration::from_millis(20), saving: Duration::from_secs(60), ..Pace::default() }
    }

    /// Sends all services as an event when the lists of both kinds are complete. After that, sends
    /// what has changed. Ends when the receiver is closed. Reports an error, and tries again after a
    /// pause.
    pub async fn watch(self, events: mpsc::Sender<Event>) {
        let (reports, queue) = mpsc::channel(QUEUE);
        // Both end with this function.
        let mut followers = JoinSet::new();
        followers.spawn(follow::<Services, _>(Arc::clone(&self.server), self.pace, reports.clone()));
        followers.spawn(follow::<Slices, _>(Arc::clone(&self.server), self.pace, reports));
        let known =
            Known { server: self.server, services: Part::default(), slices: Part::default(), is_told: false };
        Teller::new(known, events, self.saved, self.pace).tell(queue).await;
    }
}

/// The kind of Service objects.
#[derive(Clone, Debug)]
struct Services;

impl Kind for Services {
    const KIND: &'static str = objects::SERVICE;
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "services";
    type Kept = Decoded<Service>;

    fn decode(text: &str) -> Option<Self::Kept> {
        Some(objects::service(text, UNNAMED)?.map_err(Box::new))
    }
}

/// The kind of EndpointSlice objects.
#[derive(Clone, Debug)]
struct Slices;

impl Kind for Slices {
    const KIND: &'static str = objects::SLICE;
    const GROUP: &'static str = "discovery.k8s.io";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "endpointslices";
    type Kept = Decoded<EndpointSlice>;

    fn decode(text: &str) -> Option<Self::Kept> {
        Some(objects::slice(text, UNNAMED)?.map_err(Box::new))
    }
}

/// An object, or why it does not decode. The box keeps 20,000 entries of a map small.
type Decoded<T> = Result<Arc<T>, Box<ServiceProblem>>;

/// A change of either kind.
enum EitherChange {
    Service(Change<Services>),
    Slice(Change<Slices>),
}

impl From<Change<Services>> for EitherChange {
    fn from(change: Change<Services>) -> Self {
        Self::Service(change)
    }
}

impl From<Change<Slices>> for EitherChange {
    fn from(change: Change<Slices>) -> Self {
        Self::Slice(change)
    }
}

/// The services and slices that the API server has.
struct Known {
    server: Arc<Server>,
    services: Part<Service, ServiceName>,
    slices: Part<EndpointSlice, SliceName>,
    /// Whether all of them were told once. After that, only changes are.
    is_told: bool,
}

impl Known {
    /// Tells the client where the API servers themselves are.
    fn note_api_servers(&self) {
        let of_kubernetes = |slice: &&Arc<EndpointSlice>| slice.service.is_kubernetes();
        let endpoints = self.slices.good().filter(of_kubernetes).flat_map(|slice| {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.is_ready);
            ready.flat_map(|endpoint| {
                let at = |port: &EndpointPort| SocketAddr::new(endpoint.address, port.port.get());
                slice.ports.iter().map(at)
            })
        });
        let endpoints: Vec<_> = endpoints.collect();
        // An API server has just told this, so at least one of the earlier addresses is good.
        if !endpoints.is_empty() {
            self.server.note_endpoints(endpoints);
        }
    }

    fn problems(&self) -> Vec<ServiceProblem> {
        self.services.problems().chain(self.slices.problems()).cloned().collect()
    }
}

impl Objects for Known {
    const PLURALS: &'static [&'static str] = &[Services::PLURAL, Slices::PLURAL];
    const SAVED_AS: &'static str = "List";
    type Change = EitherChange;
    type Entries = Entries;
    type Item = Item;

    fn take(&mut self, change: EitherChange) {
        match change {
            EitherChange::Service(Change::All(all)) => self.services.replace(all, service_name),
            EitherChange::Service(Change::Put(name, new)) => self.services.set(name, Some(new), service_name),
            EitherChange::Service(Change::Gone(name)) => self.services.set(name, None, service_name),
            EitherChange::Slice(Change::All(all)) => self.slices.replace(all, slice_name),
            EitherChange::Slice(Change::Put(name, new)) => self.slices.set(name, Some(new), slice_name),
            EitherChange::Slice(Change::Gone(name)) => self.slices.set(name, None, slice_name),
        }
    }

    fn has_news(&self) -> bool {
        !self.is_told || self.services.has_changed() || self.slices.has_changed()
    }

    fn news(&mut self) -> Event {
        let has_other_problems = self.services.problems_changed || self.slices.problems_changed;
        let problems = (has_other_problems || !self.is_told).then(|| self.problems());
        if self.slices.changes.keys().any(|slice| slice.service.is_kubernetes()) {
            self.note_api_servers();
        }
        let changes = ServiceChanges {
            services: self.services.take_changes(),
            slices: self.slices.take_changes(),
            problems,
        };
        if std::mem::replace(&mut self.is_told, true) {
            return Event::ServicesChanged(changes);
        }
        Event::Services(ServiceList {
            services: self.services.good().cloned().collect(),
            slices: self.slices.good().cloned().collect(),
            problems: changes.problems.unwrap_or_default(),
            age: Duration::ZERO,
        })
    }

    fn saved(&self, entries: Entries, age: Duration) -> Event {
        let Entries { services, slices, problems, .. } = entries;
        Event::Services(ServiceList { services, slices, problems, age })
    }

    fn items(&self) -> Vec<Item> {
        let services = self.services.good().cloned().map(Item::Service);
        services.chain(self.slices.good().cloned().map(Item::Slice)).collect()
    }

    fn unusable(reason: String) -> Event {
        Event::ServicesUnusable(reason)
    }

    fn confirmed(&self) -> Option<Event> {
        Some(Event::ServicesConfirmed)
    }
}

fn service_name(service: &Service) -> ServiceName {
    service.name.clone()
}

fn slice_name(slice: &EndpointSlice) -> SliceName {
    SliceName { service: slice.service.clone(), name: slice.name.clone() }
}

/// The objects of one kind, and those that were not told yet.
struct Part<T, N> {
    known: BTreeMap<ObjectName, Decoded<T>>,
    changes: BTreeMap<N, Option<Arc<T>>>,
    problems_changed: bool,
}

impl<T, N> Default for Part<T, N> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), changes: BTreeMap::new(), problems_changed: false }
    }
}

impl<T: PartialEq, N: Ord> Part<T, N> {
    /// Takes an object, or notes that it is gone. An object that is as before is no change.
    fn set(&mut self, name: ObjectName, new: Option<Decoded<T>>, named: fn(&T) -> N) {
        if self.known.get(&name) == new.as_ref() {
            return;
        }
        let before = match new.clone() {
            Some(new) => self.known.insert(name, new),
            None => self.known.remove(&name),
        };
        self.note(before, new, named);
    }

    /// Notes that an object is new, another one or gone.
    fn note(&mut self, before: Option<Decoded<T>>, new: Option<Decoded<T>>, named: fn(&T) -> N) {
        // The object may have another name now: a slice can be given to another service.
        for (object, is_new) in [(before, false), (new, true)] {
            match object {
                Some(Ok(object)) => drop(self.changes.insert(named(&object), is_new.then_some(object))),
                Some(Err(_)) => self.problems_changed = true,
                None => {}
            }
        }
    }

    /// Takes the complete list.
    fn replace(&mut self, all: BTreeMap<ObjectName, Decoded<T>>, named: fn(&T) -> N) {
        let mut earlier = std::mem::take(&mut self.known);
        let gone = earlier.extract_if(.., |name, _| !all.contains_key(name)).map(|(_, object)| object);
        gone.for_each(|object| self.note(Some(object), None, named));
        for (name, new) in &all {
            let before = earlier.remove(name);
            if before.as_ref() != Some(new) {
                self.note(before, Some(new.clone()), named);
            }
        }
        // A map that was built at once has full nodes. Insertions would leave them half empty.
        self.known = all;
    }

    fn has_changed(&self) -> bool {
        !self.changes.is_empty() || self.problems_changed
    }

    fn take_changes(&mut self) -> BTreeMap<N, Option<Arc<T>>> {
        self.problems_changed = false;
        std::mem::take(&mut self.changes)
    }

    fn good(&self) -> impl Iterator<Item = &Arc<T>> {
        self.known.values().filter_map(|object| object.as_ref().ok())
    }

    fn problems(&self) -> impl Iterator<Item = &ServiceProblem> {
        self.known.values().filter_map(|object| object.as_ref().err()).map(Box::as_ref)
    }
}
