//! The network namespace in which the pods of a state folder are.
//!
//! An agent in another network namespace finds none of the pods' devices. It must not conclude that
//! the pods are gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::before::boot;
use crate::files::{FileError, absent_is_fine};
use crate::lock::ClaimError;
use crate::{files, netns};

/// The file's name in the state folder.
pub(crate) const FILE: &str = "network-namespace.json";
/// The file's name while it is being written.
pub(crate) const FILE_BEGUN: &str = "network-namespace.tmp";

/// The boot, the network namespace and the folder of pins of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    boot: String,
    /// The namespace's inode number. Two namespaces that exist at the same time have different
    /// ones.
    namespace: u64,
    bpf_dir: PathBuf,
}

impl Claim {
    /// Returns the claim of this process.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn own(bpf_dir: &Path) -> Result<Self, FileError> {
        Ok(Self { boot: boot()?, namespace: netns::inode()?, bpf_dir: bpf_dir.into() })
    }

    /// Refuses a state folder of another network namespace. Touches nothing.
    ///
    /// A boot ends all namespaces, so a file of an earlier boot does not count. But a node can be a
    /// container (kind). When it restarts, it loses its namespace and its BPF file system without a
    /// boot. So if the folder of pins is the same and is empty, the pods are gone, and the check
    /// succeeds.
    ///
    /// # Errors
    /// [`ClaimError::AnotherNamespace`], [`ClaimError::File`].
    pub fn check(&self, state_dir: &Path) -> Result<(), ClaimError> {
        let file = state_dir.join(FILE);
        let Some(found) = read(&file)? else {
            return Ok(());
        };
        if found.boot != self.boot || found.namespace == self.namespace {
            return Ok(());
        }
        if found.bpf_dir == self.bpf_dir && is_empty(&self.bpf_dir)? {
            info!(
                state_dir = %state_dir.display(),
                "the network namespace and the pins of the last agent are gone: the node's container was restarted"
            );
            return Ok(());
        }
        Err(ClaimError::AnotherNamespace { path: state_dir.into(), file })
    }

    /// Writes this claim into the state folder, unless the folder already has it.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn save(&self, state_dir: &Path) -> Result<(), FileError> {
        let file = state_dir.join(FILE);
        if read(&file)?.as_ref() == Some(self) {
            return Ok(());
        }
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| FileError::of("encode", &file)(error.into()))?;
        files::replace(&file, &json)
    }
}

fn read(file: &Path) -> Result<Option<Claim>, FileError> {
    let json = match fs::read(file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::of("read", file)(error)),
    };
    let claim = serde_json::from_slice(&json);
    Ok(claim
        .map_err(|error| warn!(path = %file.display(), "the file does not decode and is ignored: {error}"))
        .ok())
}

/// Returns whether a folder is empty or absent.
fn is_empty(folder: &Path) -> Result<bool, FileError> {
    let first = fs::read_dir(folder).and_then(|mut entries| entries.next().transpose());
    match first {
        Ok(entry) => Ok(entry.is_none()),
        Err(error) => absent_is_fine(Err(error)).map(|()| true).map_err(FileError::of("list", folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Claim), refused: bool) {
        let folder = tempfile::tempdir().unwrap();
        let bpf_dir = folder.path().join("bpf");
        fs::create_dir(&bpf_dir).unwrap();
        fs::write(bpf_dir.join("ENDPOINTS"), "").unwrap();
        let own = Claim::own(&bpf_dir).unwrap();
        let mut there = own.clone();
        change(&mut there);
        there.save(folder.path()).unwrap();
        let outcome = own.check(folder.path());
        assert_eq!(matches!(outcome, Err(ClaimError::AnotherNamespace { .. })), refused, "{outcome:?}");
    }

    #[test]
    fn another_namespace_of_this_boot_is_refused() {
        check(|_| {}, false);
        check(|there| there.namespace += 1, true);
        check(
            |there| {
                there.namespace += 1;
                there.boot = "another".into();
            },
            false,
        );
    }

    #[test]
    fn a_restarted_container_is_known_by_its_lost_pins() {
        check(
            |there| {
                there.namespace += 1;
                fs::remove_file(there.bpf_dir.join("ENDPOINTS")).unwrap();
            },
            false,
        );
        check(
            |there| {
                there.namespace += 1;
                fs::remove_file(there.bpf_dir.join("ENDPOINTS")).unwrap();
                there.bpf_dir = "/sys/fs/bpf/another".into();
            },
            true,
        );
    }

    #[test]
    fn a_spoilt_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let own = Claim::own(folder.path()).unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        own.check(folder.path()).unwrap();
        own.save(folder.path()).unwrap();
        assert_eq!(read(&folder.path().join(FILE)).unwrap(), Some(own));
    }
}
