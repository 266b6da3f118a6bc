//! Gets Node objects from the API server.

mod condition;
mod node_events;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podwire_core::cluster::{NodeList, NodeProblem, NodeRecord};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::objects::{Entries, NodeObject, decode};
use crate::events::{Event, Readiness};
use crate::objects::Pace;
use crate::objects::client::Server;
use crate::objects::follower::{Change, follow};
use crate::objects::saved;
use crate::objects::teller::{Objects, Teller};
use crate::objects::watched::{Kind, ObjectName};

/// Reports that wait for the teller.
const QUEUE: usize = 64;

/// Returns the nodes of the list that the last agent has saved, or none if it cannot be used.
pub fn kept(path: &Path) -> Vec<NodeRecord> {
    let list = saved::read::<Entries>(path).ok().flatten();
    list.map(|(entries, _)| entries.records).unwrap_or_default()
}

/// The API server as a source of nodes.
#[derive(Clone, Debug)]
pub struct Source {
    /// The server.
    pub server: Arc<Server>,
    /// This node's name: the agent also sets this node's condition, and writes Events about it.
    pub node_name: String,
    /// The path of the last good list.
    pub saved: PathBuf,
    /// Time limits and pauses.
    pub pace: Pace,
    /// Time between two looks for conditions that have no Event yet.
    pub looks: Duration,
}

impl Source {
    /// [`Self::looks`] in a cluster.
    pub const LOOKS: Duration = Duration::from_secs(10);

    /// Sends the nodes as an event when the first list is complete and after every change. Ends
    /// when the receiver is closed. Reports an error, and tries again after a pause.
    pub async fn watch(self, events: mpsc::Sender<Event>, readiness: watch::Receiver<Readiness>) {
        let (unavailable, is_unavailable) = watch::channel(false);
        let (reports, queue) = mpsc::channel(QUEUE);
        // All of them end with this function.
        let mut others = JoinSet::new();
        others.spawn(follow::<Nodes, _>(Arc::clone(&self.server), self.pace, reports));
        others.spawn(condition::see_to(self.clone(), is_unavailable, readiness));
        others.spawn(node_events::tell(self.clone(), events.clone()));
        let known = Known { node_name: self.node_name, unavailable, nodes: BTreeMap::new(), has_news: true };
        Teller::new(known, events, self.saved, self.pace).tell(queue).await;
    }
}

/// The kind of Node objects.
#[derive(Clone, Debug)]
struct Nodes;

impl Kind for Nodes {
    const KIND: &'static str = "Node";
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "nodes";
    type Kept = Result<NodeRecord, NodeProblem>;

    fn decode(text: &str) -> Option<Self::Kept> {
        Some(decode(text, || "an entry without a name".to_owned()))
    }
}

/// The nodes that the API server has.
struct Known {
    node_name: String,
    /// Whether this node's condition says that its network is unavailable.
    unavailable: watch::Sender<bool>,
    nodes: BTreeMap<ObjectName, Result<NodeRecord, NodeProblem>>,
    has_news: bool,
}

impl Known {
    fn records(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().filter_map(|node| node.as_ref().ok())
    }
}

impl Objects for Known {
    const PLURALS: &'static [&'static str] = &[Nodes::PLURAL];
    const SAVED_AS: &'static str = "NodeList";
    type Change = Change<Nodes>;
    type Entries = Entries;
    type Item = NodeObject;

    fn take(&mut self, change: Change<Nodes>) {
        match change {
            Change::All(nodes) => {
                self.has_news |= nodes != self.nodes;
                self.nodes = nodes;
            }
            // A kubelet updates its node every few minutes, and nearly always without a change of
            // these fields.
            Change::Put(name, node) => {
                if self.nodes.get(&name) != Some(&node) {
                    self.nodes.insert(name, node);
                    self.has_news = true;
                }
            }
            Change::Gone(name) => self.has_news |= self.nodes.remove(&name).is_some(),
        }
    }

    fn has_news(&self) -> bool {
        self.has_news
    }

    fn news(&mut self) -> Event {
        self.has_news = false;
        let is_unavailable = |own: &NodeRecord| own.name == self.node_name && own.network_unavailable;
        self.unavailable.send_replace(self.records().any(is_unavailable));
        let records = self.records().cloned().collect();
        let problems = self.nodes.values().filter_map(|node| node.as_ref().err()).cloned().collect();
        Event::Nodes(NodeList { records, problems, age: Duration::ZERO })
    }

    fn saved(&self, Entries { records, problems }: Entries, age: Duration) -> Event {
        Event::Nodes(NodeList { records, problems, age })
    }

    fn items(&self) -> Vec<NodeObject> {
        self.records().map(NodeObject::from).collect()
    }

    fn unusable(reason: String) -> Event {
        Event::NodeListUnusable(reason)
    }

    fn confirmed(&self) -> Option<Event> {
        // A list that is about to be sent needs no confirmation.
        (!self.has_news).then_some(Event::NodeListConfirmed)
    }
}
