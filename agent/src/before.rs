//! What an agent found on its node and has changed, as far as it does not go with a device: `podwire uninstall` goes by it. Written into
//! the state folder before the change, and valid until the next boot, which undoes such changes itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files;
use crate::files::FileError;

/// In the state folder.
pub(crate) const FILE: &str = "before.json";
/// The same before it has its name.
pub(crate) const FILE_BEGUN: &str = "before.tmp";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    boot: String,
    /// The kernel's switches, by path below `/proc/sys`: all that switching forwarding on has changed. Empty: it was on.
    pub switches: BTreeMap<String, String>,
    /// Devices that had no clsact queueing discipline.
    pub without_clsact: BTreeSet<String>,
}

impl Before {
    /// What was written in this boot; nothing has been changed if nothing was. Where the file does not decode, it is not known, and what
    /// is there stays.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn load(state_dir: &Path) -> Result<Self, FileError> {
        let nothing = Self { boot: boot()?, ..Self::default() };
        let path = state_dir.join(FILE);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing),
            Err(error) => return Err(FileError::of("read", path)(error)),
        };
        match serde_json::from_slice::<Self>(&json) {
            Ok(found) if found.boot == nothing.boot => Ok(found),
            Ok(_) => Ok(nothing),
            Err(error) => {
                warn!(path = %path.display(), "what this node was like before the agent is not known: {error}");
                Ok(nothing)
            }
        }
    }

    /// # Errors
    /// [`FileError::Io`].
    pub fn save(&self, state_dir: &Path) -> Result<(), FileError> {
        let path = state_dir.join(FILE);
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| FileError::of("encode", &path)(error.into()))?;
        files::replace(&path, &json)
    }
}

/// A number of this boot.
///
/// # Errors
/// [`FileError::Io`].
pub(crate) fn boot() -> Result<String, FileError> {
    Ok(fs::read_to_string(BOOT).map_err(FileError::of("read", BOOT))?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_known_until_the_next_boot() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = Before::load(folder.path()).unwrap();
        assert!(before.switches.is_empty() && before.without_clsact.is_empty());
        before.without_clsact.insert("eth0".into());
        before.switches.insert("net/ipv4/ip_forward".into(), "0".into());
        before.save(folder.path()).unwrap();
        assert_eq!(Before::load(folder.path()).unwrap(), before);
        Before { boot: "another".into(), ..before }.save(folder.path()).unwrap();
        assert!(Before::load(folder.path()).unwrap().switches.is_empty());
        fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Before::load(folder.path()).unwrap().without_clsact.is_empty());
    }
}
