//! Gets Node objects from the API server: one list, then a watch.

mod cache;
mod client;
mod condition;
mod node_events;
mod object;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use kube::runtime::watcher::{self, DefaultBackoff, Error as WatchError, InitialListStrategy, watcher};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use self::cache::Cache;
pub use self::client::{Access, ClientError};
use podwire_core::cluster::{NodeList, NodeProblem, NodeRecord};

use self::object::WatchedNode;
use crate::events::{Event, Readiness};

/// Nodes of a page, where the API server does not stream the list. The agent holds a whole page at
/// a time.
const PAGE: u32 = 200;

/// Returns the nodes of the list that the last agent has kept, or none if it cannot be used.
pub fn kept(path: &Path) -> Vec<NodeRecord> {
    cache::read(path).ok().flatten().map(|list| list.records).unwrap_or_default()
}

/// The time between two confirmations of the cache, as a multiple of the time between two writes.
const CONFIRMING: u32 = 6;

/// Settings for the API server as a source of nodes.
#[derive(Clone, Debug)]
pub struct Source {
    /// The access to the server.
    pub server: Access,
    /// This node's name: the agent also sets this node's condition, and writes Events about it.
    pub node_name: String,
    /// The path of the cache with the last good list.
    pub cache: PathBuf,
    /// Time limits and pauses.
    pub pace: Pace,
}

/// Time limits and pauses.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Silence on a connection after which the agent gives it up.
    pub silence: Duration,
    /// Time after the start that the agent waits for a list. Then it uses the cached list.
    pub patience: Duration,
    /// Time between two lists for the owner of state. Changes in between are sent together.
    pub rest: Duration,
    /// Time between two writes of the cache.
    pub saving: Duration,
    /// The longest pause after a failed attempt. The first pause is less than two seconds, and it
    /// doubles.
    pub pause: Duration,
    /// Time between two looks for conditions that have no Event yet.
    pub looks: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(100),
            patience: Duration::from_secs(3),
            rest: Duration::from_secs(1),
            saving: Duration::from_secs(10),
            pause: Duration::from_secs(30),
            looks: Duration::from_secs(10),
        }
    }
}

impl Source {
    /// Returns a client for a write, with the token and the certificates of now.
    async fn client(&self) -> Result<Client, String> {
        let config = self.server.config(self.pace.silence).await.map_err(|error| client::whole(&error))?;
        client::client(config, watch::channel(()).0).map_err(|error| client::whole(&error))
    }

    /// Sends the nodes as an event when the first list is complete and after every change. Ends
    /// when the receiver is closed. Reports an error, and tries again after a pause.
    ///
    /// # Errors
    /// [`ClientError`] when the configuration cannot be used in the first place.
    pub async fn watch(
        self,
        events: mpsc::Sender<Event>,
        readiness: watch::Receiver<Readiness>,
    ) -> Result<(), ClientError> {
        let config = self.server.config(self.pace.silence).await?;
        let (answered, answers) = watch::channel(());
        let (unavailable, is_unavailable) = watch::channel(false);
        let now = Instant::now();
        let mut follower = Follower {
            url: config.cluster_url.to_string(),
            cache: Cache::new(self.cache.clone(), self.pace.saving * CONFIRMING),
            source: &self,
            events,
            answers,
            unavailable,
            strategy: InitialListStrategy::StreamingList,
            pauses: DefaultBackoff::default(),
            known: BTreeMap::new(),
            listing: BTreeMap::new(),
            has_list: false,
            unsent: false,
            next_send: now,
            next_save: now + self.pace.saving,
            lost: None,
            is_listing: true,
            answered: None,
            trusted: config.root_cert.clone(),
        };
        // The client sets up TLS: an unusable certificate shows here.
        let mut client = client::client(config, answered.clone())?;
        info!(url = follower.url, "Node objects come from the API server");
        // Both end with this function.
        let mut writers = JoinSet::new();
        writers.spawn(condition::see_to(self.clone(), is_unavailable, readiness));
        writers.spawn(node_events::tell(self.clone(), follower.events.clone()));
        loop {
            let config = watcher::Config {
                initial_list_strategy: follower.strategy.clone(),
                ..watcher::Config::default()
            };
            let nodes = watcher(Api::<WatchedNode>::all(client.clone()), config.page_size(PAGE));
            if follower.follow(Box::pin(nodes)).await == Next::Stop {
                return Ok(());
            }
            // The files may be half written at this moment. Then the old client goes on, and the
            // agent reads the files again after the next attempt.
            let renewed = match self.server.config(self.pace.silence).await {
                Ok(config) => {
                    let trusted = config.root_cert.clone();
                    client::client(config, answered.clone()).map(|client| (client, trusted))
                }
                Err(error) => Err(error),
            };
            match renewed {
                Ok((renewed, trusted)) => {
                    client = renewed;
                    follower.trusted = trusted;
                }
                Err(error) => warn!("{error}; the agent goes on with the credentials that it read before"),
            }
        }
    }
}

/// The state that successive attempts share.
struct Follower<'a> {
    source: &'a Source,
    url: String,
    cache: Cache,
    events: mpsc::Sender<Event>,
    /// Changes whenever the server has answered.
    answers: watch::Receiver<()>,
    /// Whether this node's condition says that its network is unavailable.
    unavailable: watch::Sender<bool>,
    strategy: InitialListStrategy,
    pauses: DefaultBackoff,
    known: BTreeMap<String, Result<NodeRecord, NodeProblem>>,
    /// The nodes of a list that is not complete yet.
    listing: BTreeMap<String, Result<NodeRecord, NodeProblem>>,
    /// Whether there was a complete list.
    has_list: bool,
    unsent: bool,
    next_send: Instant,
    next_save: Instant,
    /// The reason why the server does not answer.
    lost: Option<String>,
    /// Whether the requested list is not complete yet, so that `known` is older than it.
    is_listing: bool,
    /// The time from which the server's last answer counts, unless an error comes before.
    answered: Option<Instant>,
    /// The certificates that the client trusts.
    trusted: Option<Vec<Vec<u8>>>,
}

#[derive(PartialEq, Eq)]
enum Next {
    /// Continue with another client, or in another way.
    Again,
    Stop,
}

type Nodes<'a> = Pin<Box<dyn Stream<Item = Result<watcher::Event<WatchedNode>, WatchError>> + Send + 'a>>;

impl Follower<'_> {
    /// Takes events until the agent must ask in another way.
    async fn follow(&mut self, mut nodes: Nodes<'_>) -> Next {
        self.is_listing = true;
        // The end of the current pause. Starting over also waits for it, so that no server is asked
        // twice without a pause.
        let mut resume = Instant::now();
        let mut anew = false;
        let patience = Instant::now() + self.source.pace.patience;
        loop {
            let is_paused = resume > Instant::now();
            if anew && !is_paused {
                return Next::Again;
            }
            let counts = self.answered.unwrap_or(resume);
            tokio::select! {
                () = self.events.closed() => return Next::Stop,
                () = sleep_until(self.next_send), if self.unsent => self.send().await,
                () = sleep_until(self.next_save), if !self.cache.is_saving() => self.save(),
                () = self.cache.saved() => {}
                () = sleep_until(patience), if self.awaits_cache() => {
                    let silent = format!("the API server sent no complete list within {:?}", self.source.pace.patience);
                    self.use_cache(&silent).await;
                }
                // A watch can begin with an error, so the answer does not count at once.
                Ok(()) = self.answers.changed(), if !self.is_listing => {
                    self.answered = Some(Instant::now() + self.source.pace.rest);
                }
                () = sleep_until(counts), if self.answered.is_some() => self.found().await,
                () = sleep_until(resume), if is_paused => {}
                event = nodes.next(), if !is_paused => match event {
                    Some(Ok(event)) => self.take(event),
                    // An API server may have nothing to send for a long time: some send no
                    // bookmarks while no node changes. `watcher` resumes the watch at once, and any
                    // other problem shows then.
                    Some(Err(WatchError::WatchFailed(kube::Error::ReadEvents(broken)))) if !self.is_listing => {
                        debug!("the watch of nodes is resumed: {}", client::whole(&broken));
                    }
                    Some(Err(error)) => {
                        anew = self.note(&error).await;
                        let pause = self.pauses.next().unwrap_or(self.source.pace.pause);
                        resume = Instant::now() + pause.min(self.source.pace.pause);
                    }
                    None => return Next::Again,
                },
            }
        }
    }

    fn take(&mut self, event: watcher::Event<WatchedNode>) {
        use watcher::Event as Watched;
        match event {
            Watched::Init => {
                self.listing.clear();
                self.is_listing = true;
                self.answered = None;
            }
            Watched::InitApply(node) => {
                self.listing.insert(node.name().to_owned(), node.decoded);
            }
            Watched::InitDone => {
                let list = std::mem::take(&mut self.listing);
                self.unsent |= !self.has_list || list != self.known;
                self.cache.is_old |= self.unsent;
                if !self.has_list {
                    self.next_save = Instant::now();
                }
                self.known = list;
                self.has_list = true;
                self.is_listing = false;
                self.answers.mark_unchanged();
                self.answered = Some(Instant::now());
            }
            // A kubelet updates its node every few minutes, and nearly always without a change of
            // these fields.
            Watched::Apply(node) => {
                let name = node.name().to_owned();
                if self.known.get(&name) != Some(&node.decoded) {
                    self.known.insert(name, node.decoded);
                    self.unsent = true;
                }
            }
            Watched::Delete(node) => self.unsent |= self.known.remove(node.name()).is_some(),
        }
    }

    async fn send(&mut self) {
        let own = self.known.get(&self.source.node_name);
        let unavailable = own.is_some_and(|own| own.as_ref().is_ok_and(|own| own.network_unavailable));
        self.unavailable.send_replace(unavailable);
        self.cache.is_old = true;
        let records = self.known.values().filter_map(|node| node.as_ref().ok()).cloned().collect();
        let problems = self.known.values().filter_map(|node| node.as_ref().err()).cloned().collect();
        // A closed receiver is not an error here: `follow` waits for that.
        let _ = self.events.send(Event::Nodes(NodeList { records, problems, age: Duration::ZERO })).await;
        self.unsent = false;
        self.next_send = Instant::now() + self.source.pace.rest;
    }

    fn save(&mut self) {
        self.next_save = Instant::now() + self.source.pace.saving;
        if self.has_list && !self.is_listing && self.lost.is_none() {
            self.cache.save(self.known.values().filter_map(|node| node.as_ref().ok()));
        }
    }

    /// Reports why the server cannot be asked. Returns whether the agent must ask in another way.
    async fn note(&mut self, error: &WatchError) -> bool {
        let status = status_of(error);
        self.answers.mark_unchanged();
        self.answered = None;
        // Check this after later errors, too: the server may run another release by then.
        if matches!(status, Some(400 | 422)) && self.strategy == InitialListStrategy::StreamingList {
            info!("the API server does not stream lists: the agent asks for them page by page");
            self.strategy = InitialListStrategy::ListWatch;
            return true;
        }
        // The version is too old. Only a new list is needed; the server is not reported as lost.
        if status == Some(410) {
            info!(
                "the API server no longer has the changes since the last list: the agent asks for the whole list again"
            );
            return matches!(error, WatchError::WatchStartFailed(_));
        }
        let hint = match status {
            Some(401) => " (the token is not valid: the agent reads it again)",
            Some(403) => " (is the ClusterRole bound to the agent's service account?)",
            _ => "",
        };
        let reason = format!("ask the API server {} for nodes: {}{hint}", self.url, client::whole(error));
        if self.lost.as_ref() != Some(&reason) {
            self.lost = Some(reason.clone());
            let _ = self.events.send(Event::NodeListUnusable(reason.clone())).await;
        }
        if self.awaits_cache() {
            self.use_cache(&reason).await;
        }
        status == Some(401) || status.is_none() && self.trusts_what_was().await
    }

    /// Returns whether the files now name other certificates than those that the client trusts.
    async fn trusts_what_was(&self) -> bool {
        let now = self.source.server.config(self.source.pace.silence).await;
        now.is_ok_and(|now| now.root_cert != self.trusted)
    }

    /// Notes that the server has answered and no error followed.
    async fn found(&mut self) {
        self.answered = None;
        if self.lost.take().is_some() {
            info!(url = self.url, "the API server answers again");
            // A list that is about to be sent needs no confirmation.
            if self.has_list && !self.unsent {
                let _ = self.events.send(Event::NodeListConfirmed).await;
            }
        }
    }

    fn awaits_cache(&self) -> bool {
        !self.has_list && self.cache.is_unread
    }

    async fn use_cache(&mut self, why: &str) {
        let Some(list) = self.cache.load() else {
            return;
        };
        warn!(
            path = %self.source.cache.display(), nodes = list.records.len(), age = ?list.age,
            "the agent uses the last good node list: {why}"
        );
        let _ = self.events.send(Event::Nodes(list)).await;
    }
}

/// Returns the HTTP status of an answer, if there was one.
fn status_of(error: &WatchError) -> Option<u16> {
    match error {
        WatchError::InitialListFailed(kube::Error::Api(status))
        | WatchError::WatchStartFailed(kube::Error::Api(status))
        | WatchError::WatchFailed(kube::Error::Api(status))
        | WatchError::WatchError(status) => Some(status.code),
        _ => None,
    }
}
