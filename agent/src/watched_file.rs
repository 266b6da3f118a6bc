//! A file that is read again when it changes.
//!
//! The kernel tells of changes in the folders that lead to the file (inotify). A look every few
//! seconds finds what it does not tell of: a folder or a link on the way that was replaced, a change on
//! a file system without notices, and every change where inotify is used up.

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

/// Writers often make several events of one change.
pub(crate) const SETTLE: Duration = Duration::from_millis(50);

/// How often the file is looked at without a notice of the kernel's.
const POLL: Duration = Duration::from_secs(5);

/// A change that is younger than this may share its time with one that is still to come: the kernel's clock of files ticks
/// (CONFIG_HZ, 100 at least).
const SURE: Duration = Duration::from_millis(20);

/// Symbolic links that are followed, as many as the kernel follows (MAXSYMLINKS).
const LINKS: usize = 40;

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
}

/// A file to watch.
#[derive(Clone, Debug)]
pub struct Watched {
    /// What it is, for messages.
    pub what: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// Its largest size, bytes.
    pub limit: u64,
}

/// A file that was opened to be read, no further than its largest size.
pub(crate) type Opened = Take<File>;

impl Watched {
    /// Sends what `event_of` makes of the file, or of the reason why it cannot be read, now and after every change. The file is read on a
    /// thread of its own, so that a large one keeps nobody waiting.
    ///
    /// # Errors
    /// [`WatchError`]. Otherwise it returns when nobody receives any more.
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
            // Before the file is read: a change after that is told.
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

    /// Reads the file unless it is as it was.
    fn look(
        &self,
        last: Option<Result<Seen, String>>,
        event_of: &impl Fn(Result<Opened, String>) -> Event,
    ) -> (Result<Seen, String>, Option<Event>) {
        let (mut seen, mut file) = apart(self.open());
        // Other files of the folder change too, and the log may be one of them.
        if last.as_ref() == Some(&seen) {
            return (seen, None);
        }
        if seen.as_ref().is_ok_and(|seen| seen.age() <= SURE) {
            std::thread::sleep(SURE);
            (seen, file) = apart(self.open());
        }
        (seen, Some(event_of(file)))
    }

    /// The text of the file.
    ///
    /// # Errors
    /// Why it cannot be read, with what it is and its path.
    pub(crate) fn read(&self) -> Result<String, String> {
        let (_, file) = self.open()?;
        io::read_to_string(file).map_err(|error| self.cannot("read", &error))
    }

    fn open(&self) -> Result<(Seen, Opened), String> {
        let open = || {
            // Before it is opened: that alone does something to a device or a FIFO.
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
                "it has {size} bytes, more than the {limit} that are read"
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

/// What tells one state of a file from another without reading it. A large list is not kept for that.
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

    /// How long ago it was changed; zero where the wall clock was set back since.
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
    /// Device and inode of each folder that is watched.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    /// Why there are none, as it was last said.
    missing: Option<String>,
}

impl Notices {
    fn new(file: Arc<Watched>, changes: mpsc::Sender<()>) -> Self {
        Self { file, changes, watcher: None, watched: BTreeMap::new(), missing: None }
    }

    /// A folder that was removed is watched no more, even if another has its name, device and inode now.
    fn renew(&mut self) {
        self.watched.clear();
    }

    /// Watches the folders that lead to the file now. Where that fails the file is still looked at.
    fn follow(&mut self) {
        let missing = self.try_follow().err().map(|error| error.to_string());
        if missing == self.missing {
            return;
        }
        if let Some(why) = &missing {
            warn!(
                "the kernel tells of no changes of {} {}, which is looked at every {} s instead: {why} (fs.inotify.max_user_instances, fs.inotify.max_user_watches)",
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
            // One that is not there is looked for again.
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

/// Folders, not the file: editors and ConfigMaps replace files by renaming. A symbolic link's target has a folder of its own.
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
    })
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}
