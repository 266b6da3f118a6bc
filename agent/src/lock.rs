//! Files and folders that one process holds, so that no second agent uses them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;

/// The kernel's list of locks, as far as their holders are in this process's PID namespace.
const LOCKS: &str = "/proc/locks";

/// What is held, in an operator's words.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// "the state folder".
    pub name: &'static str,
    /// The option by which an agent is given another one.
    pub option: &'static str,
}

/// A file or folder that this process holds, until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Holds something by a file of its own, which is made if it is not there. The file holds the process id.
    ///
    /// # Errors
    /// [`Error::Locked`] with the process that holds it, [`Error::RemovedFolder`], [`Error::File`].
    pub fn by_file(path: &Path, held: Held, shown: &Path) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(|error| match (error.kind(), path.parent()) {
            // It was there a moment ago.
            (io::ErrorKind::NotFound, Some(folder)) if folder.exists() => {
                Error::RemovedFolder { path: folder.into() }
            }
            _ => Error::file("open", path)(error),
        })?;
        if !try_hold(&file, path)? {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(locked(held, shown, pid.trim()));
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(Error::file("write", path))?;
        Ok(Self { path: path.into(), file })
    }

    /// Holds a folder: on a file system that has no files of its own, too.
    ///
    /// # Errors
    /// [`Error::Locked`] with the process that holds it, if that can be known; [`Error::File`].
    pub fn folder(path: &Path, held: Held) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::file("open", path))?;
        if !try_hold(&file, path)? {
            let pid = holder(&file).unwrap_or_default();
            return Err(locked(held, path, &pid));
        }
        Ok(Self { path: path.into(), file })
    }

    /// Whether what is held is what its path leads to.
    pub fn is_there(&self) -> bool {
        let identity =
            |metadata: io::Result<fs::Metadata>| metadata.map(|found| (found.dev(), found.ino())).ok();
        let held = identity(self.file.metadata());
        held.is_some() && held == identity(fs::metadata(&self.path))
    }
}

fn try_hold(file: &File, path: &Path) -> Result<bool, Error> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(Error::file("lock", path)(errno.into())),
    }
}

fn locked(held: Held, path: &Path, pid: &str) -> Error {
    let pid = if pid.is_empty() { "unknown" } else { pid };
    Error::Locked { name: held.name, option: held.option, path: path.into(), pid: pid.into() }
}

/// The process that holds a lock on an open file, as the kernel lists it: `1: FLOCK  ADVISORY  WRITE 4711 00:1c:9 0 EOF`.
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
