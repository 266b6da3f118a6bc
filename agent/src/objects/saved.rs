//! The last good list of a source on disk, for an agent that starts while the API server does not
//! answer.
//!
//! The option for a file of this source can read it. The file's time says when the list was last
//! confirmed.

#![expect(
    clippy::disallowed_methods,
    reason = "a file's time is wall-clock time; after a jump only a reported age is wrong"
)]

use std::fs::File;
use std::io::{self, BufReader, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::list::{self, Entries};
use crate::before;
use crate::files;
use crate::files::FileError;

#[derive(Debug)]
pub(crate) struct Saved {
    path: PathBuf,
    /// The list, in words for messages.
    what: &'static str,
    /// Whether the file is still the one of an earlier agent, and this agent has not read it.
    pub(super) is_unread: bool,
    /// Whether there is a list that is newer than the file.
    pub(super) is_old: bool,
    confirmed: Option<tokio::time::Instant>,
    saving: Option<JoinHandle<Result<(), FileError>>>,
    /// Why the last attempt failed.
    failure: Option<String>,
    /// The time between two confirmations that the list is still good.
    interval: Duration,
}

impl Saved {
    pub(super) fn new(path: PathBuf, what: &'static str, interval: Duration) -> Self {
        Self {
            path,
            what,
            is_unread: true,
            is_old: false,
            confirmed: None,
            saving: None,
            failure: None,
            interval,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the list of an earlier agent, and returns it with its age. `None` if there is no
    /// usable list; the log says why it cannot be used.
    pub(super) fn load<E: Entries>(&mut self) -> Option<(E, Duration)> {
        self.is_unread = false;
        match read(&self.path) {
            Ok(list) => list,
            Err(reason) => {
                let path = self.path.display();
                warn!(%path, "the last good copy of {} cannot be used: {reason}", self.what);
                None
            }
        }
    }

    pub(super) fn is_saving(&self) -> bool {
        self.saving.is_some()
    }

    /// Begins to write the list if it is newer than the file's list. Otherwise sets the file's time
    /// to now once in each interval: the time says until when the file was good. Both happen on a
    /// separate thread, because a disk can be slow.
    pub(super) fn save<I: Serialize + Send + 'static>(
        &mut self,
        kind: &'static str,
        items: impl FnOnce() -> Vec<I>,
    ) {
        let is_due = self.confirmed.is_none_or(|since| since.elapsed() >= self.interval);
        if !self.is_old && !is_due {
            return;
        }
        let path = self.path.clone();
        let items = self.is_old.then(items);
        // A list that comes from now on is newer than the one being written.
        self.is_old = false;
        self.saving = Some(tokio::task::spawn_blocking(move || match items {
            Some(items) => files::replace_with(&path, |file| encode(kind, &items, file)),
            None => File::open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .map_err(FileError::of("set the time of", &path)),
        }));
    }

    /// Waits until the current write has ended. Without a current write, it never returns.
    pub(super) async fn saved(&mut self) {
        let Some(saving) = &mut self.saving else { return std::future::pending().await };
        let outcome = match saving.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(panic) => Err(panic.to_string()),
        };
        self.saving = None;
        match outcome {
            Ok(()) => {
                self.is_unread = false;
                self.failure = None;
                self.confirmed = Some(tokio::time::Instant::now());
            }
            Err(failure) => {
                // The next attempt must write the whole list.
                self.is_old = true;
                if self.failure.as_ref() != Some(&failure) {
                    let what = self.what;
                    error!("cannot save {what} for a restart without the API server: {failure}");
                    self.failure = Some(failure);
                }
            }
        }
    }
}

/// Writes a list entry by entry, so that the text of a large list is never in memory as a whole.
pub(crate) fn encode(kind: &str, items: &[impl Serialize], to: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct List<'a, I> {
        kind: &'a str,
        #[serde(rename = "bootID")]
        boot: String,
        items: &'a [I],
    }
    let boot = before::boot().unwrap_or_default();
    Ok(serde_json::to_writer(to, &List { kind, boot, items })?)
}

/// Reads the list, if it is from this boot, and returns it with its age. After a reboot, kubelet
/// gets the agent's pod from the API server before it starts the agent, so the agent does not need
/// the file. And the node may have another object by then.
pub(crate) fn read<E: Entries>(path: &Path) -> Result<Option<(E, Duration)>, String> {
    #[derive(Deserialize)]
    struct Boot {
        #[serde(rename = "bootID")]
        boot: Option<String>,
    }

    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let written =
        file.metadata().and_then(|metadata| metadata.modified()).map_err(|error| error.to_string())?;
    // If the clock was set back, a minimal age is better than a wrong one. It is not zero, because
    // zero stands for a current list.
    let age = SystemTime::now().duration_since(written).unwrap_or_default().max(Duration::from_nanos(1));
    let Boot { boot } = serde_json::from_reader(BufReader::new(&file)).map_err(|error| error.to_string())?;
    if boot.is_some_and(|boot| Ok(boot) != before::boot().map_err(|_| ())) {
        return Ok(None);
    }
    (&file).rewind().map_err(|error| error.to_string())?;
    let entries = list::parse(path, file).map_err(|error| error.to_string())?;
    Ok(Some((entries, age)))
}
