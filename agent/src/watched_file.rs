//! A file that is read again when it changes.
//!
//! The kernel reports changes in the folders that lead to the file (inotify). A check every few
//! seconds finds what the kernel does not report:
//!
//! - a folder or a link on the way that was replaced,
//! - a change on a file system without notices,
//! - every change when inotify's limits are used up.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Take};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::events::Event;

/// Waiting time after a notice: writers often make several events of one change.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);

/// Interval of checks without a notice from the kernel.
const POLL: Duration = Duration::from_secs(5);

/// If a change is younger than this, the next change may get the same time. The kernel's clock for
/// file times advances only once per tick (CONFIG_HZ, 100 at least).
const SURE: Duration = Duration::from_millis(20);

/// Largest number of symbolic links that are followed: as many as the kernel follows (MAXSYMLINKS).
const LINKS: usize = 40;

/// Why a file cannot be watched.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The file's folder does not exist.
    #[error("the folder {} of {what} does not exist: create it; the file may come later", path.display())]
    NoFolder {
        /// The file's purpose, for messages.
        what: &'static str,
        /// The folder.
        path: PathBuf,
    },
}

/// A file to watch.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The file's purpose, for messages.
    pub what: &'static str,
    /// The file's path.
    pub path: PathBuf,
    /// The file's largest size in bytes.
    pub limit: u64,
}

/// An open file that is read up to its largest size.
pub(crate) type Opened = Take<File>;

impl Watched {
    /// Sends an event now and after every change. `event_of` makes it from the file, or from the
    /// reason why the file cannot be read. A separate thread reads the file, so that a large file
    /// delays nothing else.
    ///
    /// # Errors
    /// [`WatchError`]. Without an error, this returns when the receiver is dropped.
    pub async fn watch(
        self,
        events: &mpsc::Sender<Event>,
        event_of: impl Fn(Result<Opened, String>) -> Event + Send + Sync + 'static,
    ) -> Result<(), WatchError> {
        let folder = parent(&self.path);
        if !folder.is_dir() {
            return Err(WatchError::NoFolder { what: self.what, path: folder });
        }
        let (file, event_of) = (Arc::new(self), Arc::new(event_of));
        let (changes_in, mut changes) = mpsc::channel(1);
        let mut notices = Notices::new(Arc::clone(&file), changes_in);
        let mut last = None;
        loop {
            // Before the file is read, so that a change after the read is reported.
            notices.follow();
            let look = {
                let (file, event_of) = (Arc::clone(&file), Arc::clone(&event_of));
                move || file.look(last, &*event_of)
            };
            let (seen, event) = spawn_blocking(look)
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            last = Some(seen);
            if let Some(event) = event
                && events.send(event).await.is_err()
            {
                return Ok(());
            }
            tokio::select! {
                changed = timeout(POLL, changes.recv()) => match changed {
                    Ok(Some(())) => {
                        sleep(SETTLE).await;
                        let _ = changes.try_recv();
                        notices.renew();
                    }
                    Ok(None) => return Ok(()),
                    Err(_) => {}
                },
                () = events.closed() => return Ok(()),
            }
        }
    }

    /// Reads the file if it has changed.
    fn look(
        &self,
        last: Option<Result<Seen, String>>,
        event_of: &impl Fn(Result<Opened, String>) -> Event,
    ) -> (Result<Seen, String>, Option<Event>) {
        let (mut seen, mut file) = apart(self.open());
        // Notices are also about other files of the folder, and the agent's log may be one of them.
        if last.as_ref() == Some(&seen) {
            return (seen, None);
        }
        if seen.as_ref().is_ok_and(|seen| seen.age() <= SURE) {
            std::thread::sleep(SURE);
            (seen, file) = apart(self.open());
        }
        (seen, Some(event_of(file)))
    }

    /// Returns the text of the file.
    ///
    /// # Errors
    /// Why the file cannot be read, with its purpose and path.
    pub(crate) fn read(&self) -> Result<String, String> {
        let (_, file) = self.open()?;
        io::read_to_string(file).map_err(|error| self.cannot("read", &error))
    }

    fn open(&self) -> Result<(Seen, Opened), String> {
        let open = || {
            // Check before opening: to open a device or a FIFO already has an effect on it.
            self.check(&fs::metadata(&self.path)?)?;
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
            let metadata = file.metadata()?;
            self.check(&metadata)?;
            Ok((Seen::of(&metadata), file.take(self.limit)))
        };
        open().map_err(|error: io::Error| self.cannot("read", &error))
    }

    fn check(&self, metadata: &Metadata) -> io::Result<()> {
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        if metadata.len() > self.limit {
            let (size, limit) = (metadata.len(), self.limit);
            return Err(io::Error::other(format!(
                "it has {size} bytes, more than the {limit} that the agent reads"
            )));
        }
        Ok(())
    }

    fn cannot(&self, operation: &str, error: &dyn std::error::Error) -> String {
        format!("{operation} {} {}: {error}", self.what, self.path.display())
    }
}

fn apart(opened: Result<(Seen, Opened), String>) -> (Result<Seen, String>, Result<Opened, String>) {
    match opened {
        Ok((seen, file)) => (Ok(seen), Ok(file)),
        Err(reason) => (Err(reason.clone()), Err(reason)),
    }
}

/// The properties that show whether a file has changed. With them the agent does not have to read
/// the file, or to keep a large list for comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Seen {
    fn of(metadata: &Metadata) -> Self {
        Self {
            file: identity(metadata),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a file's time is wall-clock time; after a jump the file is only read a little later"
    )]
    /// Returns how long ago the file was changed; zero if the wall clock was set back since.
    fn age(&self) -> Duration {
        let since = Duration::new(self.changed.0.unsigned_abs(), self.changed.1 as u32);
        SystemTime::now().duration_since(UNIX_EPOCH + since).unwrap_or_default()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// The kernel's notices of changes in the folders that lead to a file.
struct Notices {
    file: Arc<Watched>,
    changes: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of each watched folder.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// The last logged reason why there are no notices.
    missing: Option<String>,
}

impl Notices {
    fn new(file: Arc<Watched>, changes: mpsc::Sender<()>) -> Self {
        Self { file, changes, watcher: None, watched: BTreeMap::new(), missing: None }
    }

    /// Forgets the watched folders. The kernel no longer watches a folder that was removed, even if
    /// a new one has its name, device and inode.
    fn renew(&mut self) {
        self.watched.clear();
    }

    /// Watches the folders that now lead to the file. If that fails, the periodic check still reads
    /// the file.
    fn follow(&mut self) {
        let missing = self.try_follow().err().map(|error| error.to_string());
        if missing == self.missing {
            return;
        }
        if let Some(why) = &missing {
            warn!(
                "the kernel does not report changes of {} {}, so the agent checks for them every {} s: {why} (see fs.inotify.max_user_instances and fs.inotify.max_user_watches)",
                self.file.what,
                self.file.path.display(),
                POLL.as_secs()
            );
        }
        self.missing = missing;
    }

    fn try_follow(&mut self) -> notify::Result<()> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(watcher(self.changes.clone())?),
        };
        for folder in folders_to(&self.file.path) {
            // A missing folder is tried again at the next check.
            let Ok(found) = fs::metadata(&folder).map(|metadata| identity(&metadata)) else { continue };
            if self.watched.get(&folder) == Some(&found) {
                continue;
            }
            let _ = watcher.unwatch(&folder);
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            debug!(folder = %folder.display(), "watching for changes of {}", self.file.what);
            self.watched.insert(folder, found);
        }
        Ok(())
    }
}

/// Returns the folders that lead to a file. The file itself is not enough: editors and ConfigMaps
/// replace files by renaming. The target of a symbolic link has its own folder.
fn folders_to(path: &Path) -> Vec<PathBuf> {
    let mut at = path.to_owned();
    let mut folders = vec![parent(&at)];
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&at) else { break };
        at = parent(&at).join(target);
        folders.push(parent(&at));
    }
    folders
}

fn watcher(changes: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Ignore reads: the agent answers a notice by reading, and that would never end.
        let reading = |event: &notify::Event| match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) => true,
            _ => false,
        };
        if !event.as_ref().is_ok_and(reading) {
            // If the channel is full, a change is already announced.
            let _ = changes.try_send(());
        }
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
