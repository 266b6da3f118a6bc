//! The node's settings from before the agent changed them. `podwire uninstall` restores them.
//!
//! The file has only settings that stay after the agent's own devices (pods' links, the tunnel) are
//! gone. The agent writes them into the state folder before it changes them. They are valid until
//! the next boot, because a boot itself undoes such changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::files;
use crate::files::FileError;

/// The file's name in the state folder.
pub(crate) const FILE: &str = "before.json";
/// The file's name while it is being written.
pub(crate) const FILE_BEGUN: &str = "before.tmp";
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The node's settings before the agent's first change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    boot: String,
    /// Earlier values of kernel switches, by path below `/proc/sys`: those that changed when the
    /// agent switched forwarding on for the node or for one link, and limits of connection tracking.
    pub switches: BTreeMap<String, String>,
    /// Devices that had no clsact queueing discipline.
    pub without_clsact: BTreeSet<String>,
}

impl Before {
    /// Reads what an agent wrote in this boot.
    ///
    /// Returns an empty value if no agent wrote anything: then nothing has been changed. Also
    /// returns an empty value for a file that does not decode. The earlier settings are then
    /// unknown, and the current ones stay.
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
                warn!(path = %path.display(), "the file does not decode, so the node's settings from before the agent are unknown: {error}");
                Ok(nothing)
            }
        }
    }

    /// Writes the settings into the state folder.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn save(&self, state_dir: &Path) -> Result<(), FileError> {
        let path = state_dir.join(FILE);
        let json =
            serde_json::to_vec_pretty(self).map_err(|error| FileError::of("encode", &path)(error.into()))?;
        files::replace(&path, &json)
    }
}

/// Returns the kernel's random id of this boot.
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
