//! Locks on files and folders, so that no second agent uses them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use thiserror::Error;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::files::FileError;

/// The kernel's list of locks. It has only holders in this process's PID namespace.
const LOCKS: &str = "/proc/locks";

/// Why an agent may not use a folder or a socket.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another process uses the folder or socket.
    #[error("{name} {} is in use by another agent, or by `podwire uninstall` (process {pid}; the number can be from the other container's PID namespace): stop that process, or give this agent another {option}", path.display())]
    Locked {
        /// What the other process uses, in an operator's words.
        name: &'static str,
        /// The option that gives an agent another one.
        option: &'static str,
        /// Its path.
        path: PathBuf,
        /// The id of the process that holds it, if known.
        pid: String,
    },
    /// The pods of the state folder are in another network namespace.
    #[error("the pods of the state folder {} are in another network namespace of this machine, where their agent has run since the last boot; nothing was touched. Run podwire in that namespace (hostNetwork: true), or give it another --state-dir and --bpf-dir. If that namespace and its pods are gone, remove {}", path.display(), file.display())]
    AnotherNamespace {
        /// The state folder.
        path: PathBuf,
        /// The file that names the namespace.
        file: PathBuf,
    },
    /// An agent runs, and `podwire uninstall` must not run beside it.
    #[error("an agent runs on this node and uses {}: first stop the agent, and everything that starts it again; nothing was touched", path.display())]
    AgentRuns {
        /// The state folder or the socket.
        path: PathBuf,
    },
    /// Another program serves the socket without holding its lock.
    #[error("another program serves the socket {}: stop that program, or give this agent another --socket", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Something to lock, in an operator's words.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// What it is: "the state folder", for example.
    pub name: &'static str,
    /// The option that gives an agent another one.
    pub option: &'static str,
}

/// A lock on a file or folder. The kernel releases it when this is dropped or when the process ends
/// in any way.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks something by a separate file, which is made if it is missing. Writes the process id
    /// into the file.
    ///
    /// # Errors
    /// [`ClaimError::Locked`] with the process that holds it, [`ClaimError::File`].
    pub fn by_file(path: &Path, held: Held, shown: &Path) -> Result<Self, ClaimError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(|error| match (error.kind(), path.parent()) {
            // The folder exists, but cannot take a file: it was removed under its mount.
            (io::ErrorKind::NotFound, Some(folder)) if folder.exists() => {
                FileError::RemovedFolder { path: folder.into() }
            }
            _ => FileError::of("open", path)(error),
        })?;
        if !try_hold(&file, path)? {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(locked(held, shown, pid.trim()));
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(FileError::of("write", path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Locks a folder itself. This also works on a file system that has no ordinary files (BPF).
    ///
    /// # Errors
    /// [`ClaimError::Locked`] with the process that holds it, if that can be found out;
    /// [`ClaimError::File`].
    pub fn folder(path: &Path, held: Held) -> Result<Self, ClaimError> {
        let file = File::open(path).map_err(FileError::of("open", path))?;
        if !try_hold(&file, path)? {
            let pid = holder(&file).unwrap_or_default();
            return Err(locked(held, path, &pid));
        }
        Ok(Self { path: path.into(), file })
    }

    /// Returns whether the path still leads to what is locked.
    pub fn is_there(&self) -> bool {
        let identity =
            |metadata: io::Result<fs::Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
        let held = identity(self.file.metadata());
        held.is_some() && held == identity(fs::metadata(&self.path))
    }
}

fn try_hold(file: &File, path: &Path) -> Result<bool, FileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(FileError::of("lock", path)(errno.into())),
    }
}

fn locked(held: Held, path: &Path, pid: &str) -> ClaimError {
    let pid = if pid.is_empty() { "unknown" } else { pid };
    ClaimError::Locked { name: held.name, option: held.option, path: path.into(), pid: pid.into() }
}

/// Returns the process that holds a lock on an open file. The kernel lists such a lock like this:
/// `1: FLOCK  ADVISORY  WRITE 4711 00:1c:9 0 EOF`.
fn holder(file: &File) -> Option<String> {
    let found = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = fs::read_to_string(LOCKS).ok()?;
    let mut held = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = held.find(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&place.as_str()))?;
    line.get(4).map(|pid| (*pid).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELD: Held = Held { name: "the folder", option: "--folder" };

    #[test]
    fn a_held_folder_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::folder(folder.path(), HELD).unwrap();
        let error = Lock::folder(folder.path(), HELD).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("another --folder"), "{error}");
        drop(first);
        Lock::folder(folder.path(), HELD).unwrap();
    }

    #[test]
    fn a_lock_knows_when_its_path_leads_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = Lock::by_file(&path, HELD, folder.path()).unwrap();
        assert!(lock.is_there());
        fs::remove_file(&path).unwrap();
        assert!(!lock.is_there());
        let _another = Lock::by_file(&path, HELD, folder.path()).unwrap();
        assert!(!lock.is_there());
    }
}
