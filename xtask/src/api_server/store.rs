//! Node objects and their changes, each with a version.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::lock;

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
    /// The encoded object.
    pub(super) object: String,
}

/// The Node objects, shared by all requests.
pub(super) struct Store {
    state: Mutex<State>,
    /// The latest version. A new one wakes the watchers.
    version: watch::Sender<u64>,
}

struct State {
    /// Objects by name, decoded and encoded.
    nodes: BTreeMap<String, (Value, String)>,
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
            State { nodes: BTreeMap::new(), changes: Vec::new(), version: 100, forgotten: 100, made: 0 };
        Self { state: Mutex::new(state), version: watch::Sender::new(100) }
    }
}

impl Store {
    pub(super) fn put(&self, node: Value) {
        let mut state = self.state();
        state.put(node);
        self.version.send_replace(state.version);
    }

    pub(super) fn delete(&self, name: &str) {
        let mut state = self.state();
        state.delete(name);
        self.version.send_replace(state.version);
    }

    pub(super) fn set(&self, nodes: &[Value]) {
        let mut state = self.state();
        let gone: Vec<String> = state
            .nodes
            .keys()
            .filter(|name| !nodes.iter().any(|node| name_of(node) == **name))
            .cloned()
            .collect();
        for name in gone {
            state.delete(&name);
        }
        for node in nodes {
            let same = state.nodes.get(name_of(node)).is_some_and(|(there, _)| is_same(there, node));
            if !same {
                state.put(node.clone());
            }
        }
        self.version.send_replace(state.version);
    }

    pub(super) fn node(&self, name: &str) -> Option<Value> {
        self.state().nodes.get(name).map(|(node, _)| node.clone())
    }

    pub(super) fn nodes(&self) -> Vec<Value> {
        self.state().nodes.values().map(|(node, _)| node.clone()).collect()
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

    /// Returns up to `limit` encoded objects with names after `after`. Also returns the last one's
    /// name if there are more objects, and the version.
    pub(super) fn page(&self, after: Option<&str>, limit: usize) -> (Vec<String>, Option<String>, u64) {
        let state = self.state();
        let mut rest = state.nodes.iter().filter(|(name, _)| after.is_none_or(|after| name.as_str() > after));
        let page: Vec<(&String, &(Value, String))> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|(name, _)| (*name).clone());
        let more = rest.next().and(last);
        (page.into_iter().map(|(_, (_, text))| text.clone()).collect(), more, state.version)
    }

    /// Returns the changes after a version, or `None` if the store has forgotten some of them.
    pub(super) fn changes_after(&self, version: u64) -> Option<Vec<Change>> {
        let state = self.state();
        if version < state.forgotten {
            return None;
        }
        let start = state.changes.partition_point(|change| change.version <= version);
        Some(state.changes[start..].to_vec())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn put(&mut self, mut node: Value) {
        self.version += 1;
        let name = name_of(&node).to_owned();
        let before = self.nodes.get(&name);
        let kind = if before.is_some() { Kind::Modified } else { Kind::Added };
        let there = before.map(|(node, _)| node["metadata"]["uid"].clone());
        // A deliberately malformed object may have no place for these fields.
        if let Some(metadata) = node.get_mut("metadata").and_then(Value::as_object_mut) {
            self.made += 1;
            let new = json!(format!("00000000-0000-4000-8000-{:012x}", self.made));
            metadata.entry("uid").or_insert(there.unwrap_or(new));
            metadata.insert("resourceVersion".into(), json!(self.version.to_string()));
        }
        let text = node.to_string();
        self.changes.push(Change { version: self.version, kind, object: text.clone() });
        self.nodes.insert(name, (node, text));
    }

    fn delete(&mut self, name: &str) {
        if let Some((mut node, _)) = self.nodes.remove(name) {
            self.version += 1;
            node["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.changes.push(Change {
                version: self.version,
                kind: Kind::Deleted,
                object: node.to_string(),
            });
        }
    }
}

fn name_of(node: &Value) -> &str {
    node["metadata"]["name"].as_str().unwrap_or_default()
}

/// Returns whether the objects are equal except for the fields that the server sets itself.
fn is_same(there: &Value, node: &Value) -> bool {
    let mut node = node.clone();
    for given in ["resourceVersion", "uid"] {
        if given == "resourceVersion" || node["metadata"].get(given).is_none() {
            node["metadata"][given] = there["metadata"][given].clone();
        }
    }
    node == *there
}
