//! Objects and their changes, each with a version that all kinds share.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::lock;

/// A kind of objects that the server lists and watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    Nodes,
    Services,
    EndpointSlices,
}

impl Resource {
    pub(super) const ALL: [Self; 3] = [Self::Nodes, Self::Services, Self::EndpointSlices];

    /// Returns the kind of an object. An object without a known one counts as a node.
    pub(super) fn of(object: &Value) -> Self {
        Self::ALL.into_iter().find(|resource| object["kind"] == resource.kind()).unwrap_or(Self::Nodes)
    }

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "Node",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Nodes | Self::Services => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
        }
    }

    /// Returns the path of all objects of the kind.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Nodes => "/api/v1/nodes",
            Self::Services => "/api/v1/services",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
        }
    }
}

/// An object's kind, and its name with its namespace.
type Key = (Resource, String);

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Added,
    Modified,
    Deleted,
}

/// A change, as watchers receive it.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) kind: Kind,
    pub(super) resource: Resource,
    /// The encoded object.
    pub(super) object: String,
}

/// The objects, shared by all requests.
pub(super) struct Store {
    state: Mutex<State>,
    /// The latest version. A new one wakes the watchers.
    version: watch::Sender<u64>,
}

struct State {
    /// Objects by kind and name, decoded and encoded.
    objects: BTreeMap<Key, (Value, String)>,
    changes: Vec<Change>,
    version: u64,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    /// The number of uids given out.
    made: u64,
}

impl Default for Store {
    fn default() -> Self {
        // Start at a higher version, as if objects had existed before: version 0 has a special
        // meaning.
        let state =
            State { objects: BTreeMap::new(), changes: Vec::new(), version: 100, forgotten: 100, made: 0 };
        Self { state: Mutex::new(state), version: watch::Sender::new(100) }
    }
}

impl Store {
    pub(super) fn put(&self, object: Value) {
        let mut state = self.state();
        state.put(object);
        self.version.send_replace(state.version);
    }

    pub(super) fn delete(&self, resource: Resource, name: &str) {
        let mut state = self.state();
        state.delete(&(resource, name.to_owned()));
        self.version.send_replace(state.version);
    }

    /// Replaces all objects of a kind.
    pub(super) fn set(&self, resource: Resource, objects: &[Value]) {
        let mut state = self.state();
        let of_kind = state.objects.keys().filter(|(of, _)| *of == resource);
        let gone: Vec<Key> = of_kind
            .filter(|(_, name)| !objects.iter().any(|object| name_of(object) == *name))
            .cloned()
            .collect();
        for key in gone {
            state.delete(&key);
        }
        for object in objects {
            let there = state.objects.get(&(resource, name_of(object)));
            if !there.is_some_and(|(there, _)| is_same(there, object)) {
                state.put(object.clone());
            }
        }
        self.version.send_replace(state.version);
    }

    pub(super) fn node(&self, name: &str) -> Option<Value> {
        self.state().objects.get(&(Resource::Nodes, name.to_owned())).map(|(node, _)| node.clone())
    }

    pub(super) fn all(&self, resource: Resource) -> Vec<Value> {
        let state = self.state();
        let of_kind = state.objects.iter().filter(|((of, _), _)| *of == resource);
        of_kind.map(|(_, (object, _))| object.clone()).collect()
    }

    pub(super) fn forget_changes(&self) {
        let mut state = self.state();
        // Act as if an object of another kind had changed: all kinds share the versions.
        state.version += 1;
        state.forgotten = state.version;
        state.changes.clear();
    }

    pub(super) fn wake(&self) {
        self.version.send_modify(|_| {});
    }

    pub(super) fn version(&self) -> u64 {
        self.state().version
    }

    pub(super) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Returns up to `limit` encoded objects of a kind with names after `after`. Also returns the
    /// last one's name if there are more objects, and the version.
    pub(super) fn page(
        &self,
        resource: Resource,
        after: Option<&str>,
        limit: usize,
    ) -> (Vec<String>, Option<String>, u64) {
        let state = self.state();
        let of_kind = state.objects.iter().filter(|((of, _), _)| *of == resource);
        let mut rest = of_kind.filter(|((_, name), _)| after.is_none_or(|after| name.as_str() > after));
        let page: Vec<(&Key, &(Value, String))> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|((_, name), _)| name.clone());
        let more = rest.next().and(last);
        (page.into_iter().map(|(_, (_, text))| text.clone()).collect(), more, state.version)
    }

    /// Returns the changes of a kind after a version, or `None` if the store has forgotten some
    /// changes.
    pub(super) fn changes_after(&self, resource: Resource, version: u64) -> Option<Vec<Change>> {
        let state = self.state();
        if version < state.forgotten {
            return None;
        }
        let start = state.changes.partition_point(|change| change.version <= version);
        let of_kind = state.changes[start..].iter().filter(|change| change.resource == resource);
        Some(of_kind.cloned().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn put(&mut self, mut object: Value) {
        self.version += 1;
        let resource = Resource::of(&object);
        let key = (resource, name_of(&object));
        let before = self.objects.get(&key);
        let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
        let there = before.map(|(object, _)| object["metadata"]["uid"].clone());
        // A deliberately malformed object may have no place for these fields.
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            self.made += 1;
            let new = json!(format!("00000000-0000-4000-8000-{:012x}", self.made));
            metadata.entry("uid").or_insert(there.unwrap_or(new));
            metadata.insert("resourceVersion".into(), json!(self.version.to_string()));
        }
        let text = object.to_string();
        self.changes.push(Change { version: self.version, kind, resource, object: text.clone() });
        self.objects.insert(key, (object, text));
    }

    fn delete(&mut self, key: &Key) {
        if let Some((mut object, _)) = self.objects.remove(key) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            let object = object.to_string();
            self.changes.push(Change { version: self.version, kind: Kind::Deleted, resource: key.0, object });
        }
    }
}

/// Returns an object's name, with its namespace if it has one.
fn name_of(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match text("namespace") {
        "" => text("name").to_owned(),
        namespace => format!("{namespace}/{}", text("name")),
    }
}

/// Returns whether the objects are equal except for the fields that the server sets itself.
fn is_same(there: &Value, object: &Value) -> bool {
    let mut object = object.clone();
    for given in ["resourceVersion", "uid"] {
        if given == "resourceVersion" || object["metadata"].get(given).is_none() {
            object["metadata"][given] = there["metadata"][given].clone();
        }
    }
    object == *there
}
