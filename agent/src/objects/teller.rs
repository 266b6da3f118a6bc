//! Tells the owner of state what a source's followers report, and keeps the last good list on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::Pace;
use super::follower::{News, Report};
use super::list::Entries;
use super::saved::Saved;
use crate::events::Event;

/// The time between two confirmations of the saved list, as a multiple of the time between two
/// writes.
const CONFIRMING: u32 = 6;

/// The objects of a source, and its events about them.
pub(crate) trait Objects: Send {
    /// The kinds of which the source has objects, by their names in URLs.
    const PLURALS: &'static [&'static str];
    /// `kind` of the saved list.
    const SAVED_AS: &'static str;
    /// A change that a follower reports.
    type Change: Send;
    /// The entries of the saved list, when it is read.
    type Entries: Entries;
    /// An entry of the saved list, when it is written.
    type Item: Serialize + Send + 'static;

    /// Takes a change.
    fn take(&mut self, change: Self::Change);

    /// Returns whether there is something to tell, once there was a list of each kind.
    fn has_news(&self) -> bool;

    /// Returns the event that tells it.
    fn news(&mut self) -> Event;

    /// Returns the event about a saved list of this age. It is not zero.
    fn saved(&self, entries: Self::Entries, age: Duration) -> Event;

    /// Returns the entries to save.
    fn items(&self) -> Vec<Self::Item>;

    /// Returns the event that the source does not answer, for this reason.
    fn unusable(reason: String) -> Event;

    /// Returns the event that the source has answered again. `None`: the next news say so.
    fn confirmed(&self) -> Option<Event>;
}

/// What the source's objects of one kind are worth.
#[derive(Debug, Default)]
struct State {
    /// Whether there was a complete list.
    has_list: bool,
    /// Whether the whole list was requested again, and is not complete yet.
    is_listing: bool,
    /// Whether the server does not answer.
    is_lost: bool,
}

/// Takes reports and sends events until nobody takes the events.
pub(crate) struct Teller<O: Objects> {
    objects: O,
    events: mpsc::Sender<Event>,
    pace: Pace,
    kinds: BTreeMap<&'static str, State>,
    saved: Saved,
    next_send: Instant,
    next_save: Instant,
}

impl<O: Objects> Teller<O> {
    pub(crate) fn new(objects: O, events: mpsc::Sender<Event>, saved: PathBuf, pace: Pace) -> Self {
        let now = Instant::now();
        Self {
            objects,
            events,
            pace,
            kinds: O::PLURALS.iter().map(|plural| (*plural, State::default())).collect(),
            saved: Saved::new(saved, O::Entries::WHAT, pace.saving * CONFIRMING),
            next_send: now,
            next_save: now + pace.saving,
        }
    }

    /// Does so. The followers report to `reports`.
    pub(crate) async fn tell(mut self, mut reports: mpsc::Receiver<Report<O::Change>>) {
        let patience = Instant::now() + self.pace.patience;
        loop {
            let is_complete = self.is_complete();
            tokio::select! {
                () = self.events.closed() => return,
                () = sleep_until(self.next_send), if is_complete && self.objects.has_news() => self.send().await,
                () = sleep_until(self.next_save), if !self.saved.is_saving() => self.save(),
                () = self.saved.saved() => {}
                () = sleep_until(patience), if self.awaits_saved() => {
                    let silent = format!("the API server sent no complete list within {:?}", self.pace.patience);
                    self.use_saved(&silent).await;
                }
                report = reports.recv() => match report {
                    Some(report) => self.take(report).await,
                    None => return,
                },
            }
        }
    }

    async fn take(&mut self, Report { plural, news }: Report<O::Change>) {
        let was_complete = self.is_complete();
        let was_lost = self.is_lost();
        let kind = self.kinds.entry(plural).or_default();
        match news {
            News::Listing => kind.is_listing = true,
            News::Listed(all) => {
                *kind = State { has_list: true, is_listing: false, ..std::mem::take(kind) };
                self.objects.take(all);
            }
            News::Changed(change) => self.objects.take(change),
            News::Lost(reason) => {
                kind.is_lost = true;
                let _ = self.events.send(O::unusable(reason.clone())).await;
                if self.awaits_saved() {
                    self.use_saved(&reason).await;
                }
            }
            News::Found => kind.is_lost = false,
        }
        self.saved.is_old |= self.objects.has_news();
        if self.is_complete() && !was_complete {
            self.next_save = Instant::now();
        }
        if was_lost && !self.is_lost() && self.is_complete() {
            self.confirm().await;
        }
    }

    /// Tells that the source has answered again, and before that what has changed.
    async fn confirm(&mut self) {
        let Some(event) = self.objects.confirmed() else { return };
        if self.objects.has_news() {
            self.send().await;
        }
        let _ = self.events.send(event).await;
    }

    async fn send(&mut self) {
        // A closed receiver is not an error here: `tell` waits for that.
        let _ = self.events.send(self.objects.news()).await;
        self.next_send = Instant::now() + self.pace.rest;
    }

    fn save(&mut self) {
        self.next_save = Instant::now() + self.pace.saving;
        let is_current = |state: &State| state.has_list && !state.is_listing && !state.is_lost;
        if self.kinds.values().all(is_current) {
            self.saved.save(O::SAVED_AS, || self.objects.items());
        }
    }

    fn is_complete(&self) -> bool {
        self.kinds.values().all(|state| state.has_list)
    }

    fn is_lost(&self) -> bool {
        self.kinds.values().any(|state| state.is_lost)
    }

    fn awaits_saved(&self) -> bool {
        !self.is_complete() && self.saved.is_unread
    }

    async fn use_saved(&mut self, why: &str) {
        let Some((entries, age)) = self.saved.load::<O::Entries>() else {
            return;
        };
        warn!(
            path = %self.saved.path().display(), entries = entries.len(), ?age,
            "the agent uses the last good copy of {}: {why}", O::Entries::WHAT
        );
        let _ = self.events.send(self.objects.saved(entries, age)).await;
    }
}
