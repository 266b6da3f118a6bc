//! Follows the objects of one kind at the API server: one list, then a watch.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use kube::Api;
use kube::runtime::watcher::{self, DefaultBackoff, Error as WatchError, InitialListStrategy, watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info};

use super::Pace;
use super::client::{Server, Skipped, whole};
use super::watched::{Kind, ObjectName, Watched};

/// Objects of a page, where the API server does not stream the list. The agent holds a whole page
/// at a time.
const PAGE: u32 = 200;

/// The most reasons to report before the server answers again.
const REASONS: usize = 16;

/// A follower's report about the objects of its kind.
#[derive(Debug)]
pub(crate) struct Report<C> {
    /// The kind's name in a URL.
    pub(crate) plural: &'static str,
    pub(crate) news: News<C>,
}

/// What a follower reports.
#[derive(Debug)]
pub(crate) enum News<C> {
    /// The follower has asked for the whole list, and not all of it is there yet.
    Listing,
    /// The whole list is there.
    Listed(C),
    /// An object was made, changed or removed.
    Changed(C),
    /// The server does not answer, for this reason.
    Lost(String),
    /// The server has answered again, and no error followed.
    Found,
}

/// Objects of a kind.
#[derive(Debug)]
pub(crate) enum Change<K: Kind> {
    /// All that there are.
    All(BTreeMap<ObjectName, K::Kept>),
    /// One that is new or was changed.
    Put(ObjectName, K::Kept),
    /// One that there is no more.
    Gone(ObjectName),
}

/// Reports the objects of a kind until nobody takes the reports.
pub(crate) async fn follow<K: Kind, C: From<Change<K>>>(
    server: Arc<Server>,
    pace: Pace,
    reports: mpsc::Sender<Report<C>>,
) {
    let (answered, answers) = watch::channel(());
    let mut follower = Follower {
        server: &server,
        pace,
        reports,
        answers,
        strategy: InitialListStrategy::StreamingList,
        pauses: DefaultBackoff::default(),
        listing: Vec::new(),
        lost: Vec::new(),
        client: 0,
        is_listing: true,
        answered: None,
        kind: PhantomData::<K>,
    };
    info!(url = server.url(), "the agent follows the {} of the API server", K::PLURAL);
    loop {
        let config = watcher::Config {
            initial_list_strategy: follower.strategy.clone(),
            ..watcher::Config::default()
        };
        let client = server.client(answered.clone());
        follower.client = client.number;
        let objects = watcher(Api::<Watched<K>>::all(client.kube), config.page_size(PAGE));
        match follower.follow(Box::pin(objects)).await {
            Next::Stop => return,
            Next::Again => {}
            Next::Renew => server.renew(client.number).await,
        }
    }
}

/// The state that successive attempts share.
struct Follower<'a, K: Kind, C> {
    server: &'a Server,
    pace: Pace,
    reports: mpsc::Sender<Report<C>>,
    /// Changes whenever the server has answered.
    answers: watch::Receiver<()>,
    strategy: InitialListStrategy,
    pauses: DefaultBackoff,
    /// The objects of a list that is not complete yet.
    listing: Vec<(ObjectName, K::Kept)>,
    /// The reasons why the server does not answer.
    lost: Vec<String>,
    /// The number of the client.
    client: u64,
    /// Whether the requested list is not complete yet.
    is_listing: bool,
    /// The time from which the server's last answer counts, unless an error comes before.
    answered: Option<Instant>,
    kind: PhantomData<K>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Ask in another way, or for the whole list.
    Again,
    /// Continue with another client.
    Renew,
    Stop,
}

type Objects<'a, K> = Pin<Box<dyn Stream<Item = Result<watcher::Event<Watched<K>>, WatchError>> + Send + 'a>>;

impl<K: Kind, C: From<Change<K>>> Follower<'_, K, C> {
    /// Takes events until the agent must ask in another way.
    async fn follow(&mut self, mut objects: Objects<'_, K>) -> Next {
        self.is_listing = true;
        self.report(News::Listing).await;
        // The end of the current pause. Starting over also waits for it, so that no server is asked
        // twice without a pause.
        let mut resume = Instant::now();
        let mut next = None;
        loop {
            let is_paused = resume > Instant::now();
            if let Some(next) = next
                && !is_paused
            {
                return next;
            }
            let counts = self.answered.unwrap_or(resume);
            tokio::select! {
                () = self.reports.closed() => return Next::Stop,
                // A watch can begin with an error, so the answer does not count at once.
                Ok(()) = self.answers.changed(), if !self.is_listing => {
                    self.answered = Some(Instant::now() + self.pace.doubt);
                }
                () = sleep_until(counts), if self.answered.is_some() => self.found().await,
                () = sleep_until(resume), if is_paused => {}
                event = objects.next(), if !is_paused => match event {
                    Some(Ok(event)) => self.take(event).await,
                    // An API server may have nothing to send for a long time: some send no
                    // bookmarks while no object changes. `watcher` resumes the watch at once, and
                    // any other problem shows then.
                    Some(Err(WatchError::WatchFailed(kube::Error::ReadEvents(broken)))) if !self.is_listing => {
                        debug!("the watch of {} is resumed: {}", K::PLURAL, whole(&broken));
                    }
                    Some(Err(error)) => {
                        let is_untried;
                        (next, is_untried) = self.note(&error).await;
                        // All addresses are tried before a pause.
                        if !is_untried {
                            let pause = self.pauses.next().unwrap_or(self.pace.pause);
                            resume = Instant::now() + pause.min(self.pace.pause);
                        }
                    }
                    None => return Next::Again,
                },
            }
        }
    }

    async fn take(&mut self, event: watcher::Event<Watched<K>>) {
        use watcher::Event as At;
        let changed = |object: Watched<K>| match (object.name(), object.kept) {
            (name, Some(kept)) => Change::Put(name, kept),
            (name, None) => Change::Gone(name),
        };
        match event {
            At::Init => {
                self.listing.clear();
                self.is_listing = true;
                self.answered = None;
                self.report(News::Listing).await;
            }
            At::InitApply(object) => {
                let name = object.name();
                self.listing.extend(object.kept.map(|kept| (name, kept)));
            }
            At::InitDone => {
                let list = std::mem::take(&mut self.listing).into_iter().collect();
                self.is_listing = false;
                self.answers.mark_unchanged();
                self.answered = Some(Instant::now());
                self.report(News::Listed(Change::All(list).into())).await;
            }
            At::Apply(object) => self.report(News::Changed(changed(object).into())).await,
            At::Delete(object) => self.report(News::Changed(Change::Gone(object.name()).into())).await,
        }
    }

    async fn report(&self, news: News<C>) {
        // A closed receiver is not an error here: `follow` waits for that.
        let _ = self.reports.send(Report { plural: K::PLURAL, news }).await;
    }

    /// Reports why the server cannot be asked. Returns how the agent must go on, if not as before, and
    /// whether that is at an address that it has not tried.
    async fn note(&mut self, error: &WatchError) -> (Option<Next>, bool) {
        let status = status_of(error);
        self.answers.mark_unchanged();
        self.answered = None;
        // Check this after later errors, too: the server may run another release by then.
        if matches!(status, Some(400 | 422)) && self.strategy == InitialListStrategy::StreamingList {
            info!("the API server does not stream lists: the agent asks for {} page by page", K::PLURAL);
            self.strategy = InitialListStrategy::ListWatch;
            return (Some(Next::Again), false);
        }
        // The version is too old. Only a new list is needed; the server is not reported as lost.
        if status == Some(410) {
            info!(
                "the API server no longer has the changes of {} since the last list: the agent asks for the whole list again",
                K::PLURAL
            );
            return (matches!(error, WatchError::WatchStartFailed(_)).then_some(Next::Again), false);
        }
        let hint = match status {
            Some(401) => " (the token is not valid: the agent reads it again)",
            Some(403) => " (is the ClusterRole bound to the agent's service account?)",
            _ => "",
        };
        let url = self.server.url();
        let reason = format!("ask the API server {url} for {}: {}{hint}", K::PLURAL, whole(error));
        // The reason names the address, and the agent may come back to an address.
        if self.lost.len() < REASONS && !self.lost.contains(&reason) {
            self.lost.push(reason.clone());
            self.report(News::Lost(reason)).await;
        }
        let skipped = match status {
            // A server that cannot ask etcd, for example, is as good as none.
            None | Some(429 | 500..) => self.server.skip(self.client),
            Some(_) => Skipped::Nothing,
        };
        let is_other = skipped != Skipped::Nothing
            || status == Some(401)
            || status.is_none() && self.server.trusts_what_was().await;
        (is_other.then_some(Next::Renew), skipped == Skipped::One)
    }

    /// Notes that the server has answered and no error followed.
    async fn found(&mut self) {
        self.answered = None;
        if !std::mem::take(&mut self.lost).is_empty() {
            info!(url = self.server.url(), "the API server answers again");
            self.report(News::Found).await;
        }
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
