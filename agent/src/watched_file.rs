//! A file that is read again when it changes.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;
use tracing::debug;

use crate::daemon::Event;

/// Writers often make several events of one change.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);

/// A change that is younger than this may share its time with one that is still to come: the kernel's clock of files ticks
/// (CONFIG_HZ, 100 at least).
const SURE: Duration = Duration::from_millis(20);

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

/// Sends what `event_of` makes of the file, or of the reason why it cannot be read, now and after every change.
///
/// # Errors
/// [`WatchError`]. Otherwise it returns when nobody receives any more.
pub async fn watch(
    what: &'static str,
    path: &Path,
    events: &mpsc::Sender<Event>,
    event_of: impl Fn(Result<File, String>) -> Event,
) -> Result<(), WatchError> {
    let (changes_in, mut changes) = mpsc::channel(1);
    let _watcher = watch_folders(what, path, changes_in)?;
    let mut last = None;
    loop {
        let opened = File::open(path).and_then(|file| Ok((Seen::of(&file.metadata()?), file)));
        let (now, file) = match opened {
            Ok((seen, file)) => (Ok(seen), Ok(file)),
            Err(error) => {
                let reason = format!("read {what} {}: {error}", path.display());
                (Err(reason.clone()), Err(reason))
            }
        };
        // Other files of the folder change too, and the log may be one of them.
        if last.as_ref() != Some(&now) {
            if events.send(event_of(file)).await.is_err() {
                return Ok(());
            }
            last = now.as_ref().map_or(true, |seen| seen.sure).then_some(now);
        }
        tokio::select! {
            changed = changes.recv() => if changed.is_none() { return Ok(()) },
            () = events.closed() => return Ok(()),
        }
        tokio::time::sleep(SETTLE).await;
        let _ = changes.try_recv();
    }
}

/// What tells one state of a file from another without reading it. A large list is not kept for that.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
    /// Whether a later change is certain to show.
    sure: bool,
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        let since = Duration::new(changed.0.unsigned_abs(), changed.1 as u32);
        let age = SystemTime::now().duration_since(UNIX_EPOCH + since).unwrap_or_default();
        Self { file: (metadata.dev(), metadata.ino()), size: metadata.size(), changed, sure: age > SURE }
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
