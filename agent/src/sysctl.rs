//! The kernel switches that pod traffic through the host stack depends on, and what they were before.
//!
//! Those of pods' links and of the tunnel's device go with them. Forwarding of the whole node and of
//! its uplinks does not: the state folder says what was found, written before the change, and
//! `podwire uninstall` goes by that.

use podwire_cni::protocol::codes;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

use tracing::info;

use crate::before::Before;
use crate::files::FileError;

const FORWARDING: &str = "net/ipv4/ip_forward";
/// Of each device, and of those to come (`default`): the kernel sets them all with the whole node's.
const DEVICES: &str = "net/ipv4/conf";
/// The kernel sets it to the opposite of the whole node's forwarding (`inet_forward_change`, net/ipv4/devinet.c).
const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

/// A switch that cannot be read or set.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// A switch of the kernel's in a folder where it can only be read.
    #[error("write {}: read-only, as in a container: mount the node's /proc/sys/net writable, at /host/proc/sys/net for example, and say so with --sysctl-dir /host/proc/sys", path.display())]
    ReadOnly {
        /// The switch.
        path: PathBuf,
    },
    /// The switch, or the file that says what it was.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SwitchError {
    /// What a plugin is told with it.
    pub(crate) const CNI_CODE: u32 = codes::IO_FAILURE;
}

/// A switch that packets of pods depend on, and what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Switch {
    /// By path below the folder.
    name: String,
    value: &'static str,
}

impl Switch {
    /// Packets that come by a device are forwarded. The kernel asks this of the device alone, whatever
    /// `ip_forward` says.
    pub fn forwarding(device: &str) -> Self {
        Self { name: format!("{DEVICES}/{device}/forwarding"), value: "1" }
    }

    /// Those of the tunnel's device:
    ///
    /// - `rp_filter` is loose: what arrives through the tunnel from a node's own address would be
    ///   routed back by the uplink, and strict mode drops it. The kernel takes the larger of this
    ///   value and `all`'s, so a strict `all` does no harm.
    /// - `disable_ipv6`: the tunnel carries IPv4 only. Without this the kernel sends router
    ///   solicitations and group reports into it.
    pub fn of_tunnel(device: &str) -> [Self; 3] {
        [
            Self::forwarding(device),
            Self { name: format!("{DEVICES}/{device}/rp_filter"), value: "2" },
            Self { name: format!("net/ipv6/conf/{device}/disable_ipv6"), value: "1" },
        ]
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// What became of forwarding when it was to be as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The agent has not changed it, not since the last boot.
    NotChanged,
    /// Somebody has switched it off since.
    ChangedSince,
    /// It was switched off, as it was.
    AsBefore,
}

/// The switches of this network namespace.
#[derive(Clone, Debug)]
pub struct Switches {
    /// Where the kernel shows them: `/proc/sys`, or, where that is read-only, as in a container, another folder with the same in it.
    folder: PathBuf,
}

impl Switches {
    /// Those below a folder.
    pub fn below(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// Pods' packets to what the stack decides about (ClusterIPs, the world) are forwarded by it. What was found goes into the state folder
    /// first, unless that has what an earlier agent found. Gives whether it was off.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn enable_forwarding(&self, state_dir: &Path) -> Result<bool, SwitchError> {
        if self.read(FORWARDING)? == "1" {
            return Ok(false);
        }
        let before = Before::load(state_dir)?;
        let mut with_these = before.clone();
        if !before.switches.contains_key(FORWARDING) {
            with_these.switches = self.switched_with_forwarding()?;
        }
        self.set_remembering(FORWARDING, &before, &with_these, state_dir)?;
        Ok(true)
    }

    /// The same of one of the node's links.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn enable_forwarding_of(&self, device: &str, state_dir: &Path) -> Result<bool, SwitchError> {
        let switch = Switch::forwarding(device);
        let Some(found) = self.found(&switch)? else {
            return Ok(false);
        };
        let before = Before::load(state_dir)?;
        let mut with_this = before.clone();
        with_this.switches.entry(switch.name.clone()).or_insert(found);
        self.set_remembering(&switch.name, &before, &with_this, state_dir)?;
        Ok(true)
    }

    /// Switches forwarding on. What it was before is remembered first, and forgotten where it cannot be
    /// switched on: then whoever does it is not to be undone.
    fn set_remembering(
        &self,
        name: &str,
        before: &Before,
        with_these: &Before,
        state_dir: &Path,
    ) -> Result<(), SwitchError> {
        with_these.save(state_dir)?;
        let set = self.set(name, "1");
        if set.is_err() {
            before.save(state_dir)?;
        }
        set
    }

    /// Sets a switch of a device that the agent or the plugin has made. Gives whether it was otherwise.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn put_right(&self, switch: &Switch) -> Result<bool, SwitchError> {
        let is_otherwise = self.found(switch)?.is_some();
        if is_otherwise {
            self.set(&switch.name, switch.value)?;
        }
        Ok(is_otherwise)
    }

    /// What a switch is where that is not what it has to be. A device may be gone; one whose MTU is
    /// below 1280 has no switches of IPv6, and a kernel without IPv6 has none at all.
    fn found(&self, switch: &Switch) -> Result<Option<String>, SwitchError> {
        match self.read(&switch.name) {
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other?).filter(|found| *found != switch.value)),
        }
    }

    /// Switches forwarding off again if the agent has switched it on, in this boot, and it is still on; and gives back what the kernel
    /// changes with it, where that is still as it was left.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn restore_forwarding(&self, before: &Before) -> Result<Forwarding, SwitchError> {
        if before.switches.is_empty() {
            return Ok(Forwarding::NotChanged);
        }
        if self.read(FORWARDING)? != "1" {
            return Ok(Forwarding::ChangedSince);
        }
        if !before.switches.contains_key(FORWARDING) {
            // It was on, and some links of the node were not forwarded for.
            for (name, value) in &before.switches {
                if self.read(name).is_ok_and(|now| now == "1") {
                    self.set(name, value)?;
                }
            }
            return Ok(Forwarding::AsBefore);
        }
        let mut wanted = BTreeMap::new();
        for (name, now) in self.switched_with_forwarding()? {
            let left_at = if name == REDIRECTS { "0" } else { "1" };
            let before = before.switches.get(&name).filter(|_| now == left_at);
            // A device that has come since is as it would be if forwarding had never been on.
            let otherwise = if now == left_at { "0".into() } else { now };
            wanted.insert(name, before.cloned().unwrap_or(otherwise));
        }
        self.set(FORWARDING, "0")?;
        for (name, value) in wanted.iter().filter(|(name, _)| *name != FORWARDING) {
            self.set(name, value)?;
        }
        Ok(Forwarding::AsBefore)
    }

    /// All that writing the whole node's forwarding changes, by path below the folder, as it is now.
    fn switched_with_forwarding(&self) -> Result<BTreeMap<String, String>, FileError> {
        let folder = self.folder.join(DEVICES);
        let mut names = vec![FORWARDING.to_owned(), REDIRECTS.to_owned()];
        for entry in fs::read_dir(&folder).map_err(FileError::of("list", &folder))? {
            let device = entry.map_err(FileError::of("list", &folder))?.file_name();
            // `all` is the whole node's switch by another name.
            if device != "all" {
                names.push(format!("{DEVICES}/{}/forwarding", device.to_string_lossy()));
            }
        }
        // A device may go in between.
        Ok(names.into_iter().filter_map(|name| self.read(&name).ok().map(|value| (name, value))).collect())
    }

    fn read(&self, name: &str) -> Result<String, FileError> {
        let path = self.folder.join(name);
        let value = fs::read_to_string(&path).map_err(FileError::of("read", path))?;
        Ok(value.trim().to_owned())
    }

    /// Writes only what is not so already, and says what it changed.
    fn set(&self, name: &str, value: &str) -> Result<(), SwitchError> {
        let before = self.read(name)?;
        if before == value {
            return Ok(());
        }
        let path = self.folder.join(name);
        fs::write(&path, value).map_err(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => SwitchError::ReadOnly { path: path.clone() },
            _ => FileError::of("write", &path)(error).into(),
        })?;
        info!(sysctl = name, from = before, to = value, "kernel switch set");
        Ok(())
    }
}
