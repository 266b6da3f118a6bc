//! A file that is read again when it changes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::debug;

use crate::daemon::Event;

/// Writers often make several events of one change.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);

/// Why a file cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// Its folder is not there.
    #[error("the folder {} of {what} does not exist: create it, with the file in it or for it to come", path.display())]
    NoFolder {
        /// What the file is.
        what: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// The kernel refuses.
    #[error("watch {} for changes of {what}: {source}", path.display())]
    Watch {
        /// What the file is.
        what: &'static str,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: notify::Error,
    },
}

/// Sends what `event_of` makes of the file's text, or of the reason why it cannot be read, now and after every change.
///
/// # Errors
/// [`WatchError`]. Otherwise it returns when nobody receives any more.
pub async fn watch(
    what: &'static str,
    path: &Path,
    events: &mpsc::Sender<Event>,
    event_of: impl Fn(Result<&str, String>) -> Event,
) -> Result<(), WatchError> {
    let (changes_in, mut changes) = mpsc::channel(1);
    let _watcher = watch_folders(what, path, changes_in)?;
    let mut last = None;
    loop {
        // Other files of the folder change too, and the log may be one of them: only what is new is said.
        let now =
            std::fs::read_to_string(path).map_err(|error| format!("read {what} {}: {error}", path.display()));
        if last.as_ref() != Some(&now) {
            let event = event_of(now.as_deref().map_err(String::clone));
            if events.send(event).await.is_err() {
                return Ok(());
            }
            last = Some(now);
        }
        tokio::select! {
            changed = changes.recv() => if changed.is_none() { return Ok(()) },
            () = events.closed() => return Ok(()),
        }
        tokio::time::sleep(SETTLE).await;
        let _ = changes.try_recv();
    }
}

/// Watches the folder, not the file: editors and ConfigMaps replace files by renaming. A symbolic link's target has a
/// folder of its own.
fn watch_folders(
    what: &'static str,
    path: &Path,
    changes: mpsc::Sender<()>,
) -> Result<RecommendedWatcher, WatchError> {
    let folder = parent(path);
    if !folder.is_dir() {
        return Err(WatchError::NoFolder { what, path: folder });
    }
    let watch_error = |source| WatchError::Watch { what, path: folder.clone(), source };
    let on_event = move |event: notify::Result<notify::Event>| {
        // Reading is an event as well: answering it by reading would never end.
        let reading = |event: &notify::Event| match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) => true,
            _ => false,
        };
        if !event.as_ref().is_ok_and(reading) {
            // Full: a change is announced already.
            let _ = changes.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event).map_err(watch_error)?;
    watcher.watch(&folder, RecursiveMode::NonRecursive).map_err(watch_error)?;
    if let Ok(target) = path.canonicalize()
        && parent(&target) != folder
    {
        watcher.watch(&parent(&target), RecursiveMode::NonRecursive).map_err(watch_error)?;
    }
    debug!(folder = %folder.display(), "watching for changes of {what}");
    Ok(watcher)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
