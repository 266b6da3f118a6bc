//! The kernel switches on which pod traffic through the host stack depends, and their earlier
//! values.
//!
//! The switches of pods' links and of the tunnel's device are gone as soon as these devices are
//! removed. But forwarding of the whole node and of its links stays on. So the agent writes the
//! earlier values into the state folder before it changes them, and `podwire uninstall` restores
//! them.

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
/// The folder with the switches of each device, and of future devices (`default`). When forwarding
/// of the whole node changes, the kernel also sets it for every device.
const DEVICES: &str = "net/ipv4/conf";
/// The kernel sets it to the opposite of the whole node's forwarding (`inet_forward_change`,
/// net/ipv4/devinet.c).
const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

/// A switch that cannot be read or set.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// The switch is in a folder that is read-only.
    #[error("write {}: it is read-only, as in a container. Mount the node's /proc/sys/net writable, for example at /host/proc/sys/net, and set --sysctl-dir /host/proc/sys", path.display())]
    ReadOnly {
        /// The switch.
        path: PathBuf,
    },
    /// The switch, or the file with its earlier value.
    #[error(transparent)]
    File(#[from] FileError),
}

impl SwitchError {
    /// The CNI error code for the plugin.
    pub(crate) const CNI_CODE: u32 = codes::IO_FAILURE;
}

/// A switch on which pods' packets depend, and the value that it must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Switch {
    /// The path below the folder of switches.
    name: String,
    value: &'static str,
}

impl Switch {
    /// Returns the switch for forwarding packets that arrive by a device. The kernel checks only
    /// the device's own switch, whatever `ip_forward` says.
    pub fn forwarding(device: &str) -> Self {
        Self { name: format!("{DEVICES}/{device}/forwarding"), value: "1" }
    }

    /// Returns the switches of the tunnel's device. Besides forwarding:
    ///
    /// - `rp_filter` is loose. A packet from a node's own address arrives through the tunnel, but
    ///   its route back leaves by the uplink, so strict mode would drop it. The kernel takes the
    ///   larger of this value and `all`'s, so a strict `all` does no harm.
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

/// The result of restoring forwarding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// The agent has not changed it since the last boot.
    NotChanged,
    /// Another program has switched it off since.
    ChangedSince,
    /// The earlier values were restored.
    AsBefore,
}

/// The switches of this network namespace.
#[derive(Clone, Debug)]
pub struct Switches {
    /// Where the kernel shows the switches: `/proc/sys`. Where that is read-only, as in a
    /// container, another folder with the same content.
    folder: PathBuf,
}

impl Switches {
    /// Returns the switches below a folder.
    pub fn below(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// Switches forwarding on, so that the host stack forwards the pods' packets that the programs
    /// leave to it (to ClusterIPs and to the world). First writes the earlier values into the state
    /// folder, unless an agent has already written them since the last boot. Returns whether
    /// forwarding was off.
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

    /// Like [`Self::enable_forwarding`], for one of the node's links.
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

    /// Switches forwarding on. Saves the earlier values first. If forwarding cannot be switched on,
    /// saves the previous record again: when another program switches it on later, uninstall must
    /// not undo that.
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

    /// Sets a switch of a device that the agent or the plugin has made. Returns whether it had
    /// another value.
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

    /// Returns a switch's value if it is not the required one. A missing switch is no error: the
    /// device may be gone, a device with an MTU below 1280 has no IPv6 switches, and a kernel
    /// without IPv6 has none at all.
    fn found(&self, switch: &Switch) -> Result<Option<String>, SwitchError> {
        match self.read(&switch.name) {
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other?).filter(|found| *found != switch.value)),
        }
    }

    /// Switches forwarding off again, if the agent switched it on in this boot and it is still on.
    /// Also restores the switches that the kernel changed at the same time, if they still have the
    /// values that the kernel gave them.
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
            // Forwarding was on; only some links of the node had it off.
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
            // A device that came later gets the value that it would have if forwarding had never
            // been on.
            let otherwise = if now == left_at { "0".into() } else { now };
            wanted.insert(name, before.cloned().unwrap_or(otherwise));
        }
        self.set(FORWARDING, "0")?;
        for (name, value) in wanted.iter().filter(|(name, _)| *name != FORWARDING) {
            self.set(name, value)?;
        }
        Ok(Forwarding::AsBefore)
    }

    /// Returns the current values of everything that changes with the whole node's forwarding, by
    /// path below the folder.
    fn switched_with_forwarding(&self) -> Result<BTreeMap<String, String>, FileError> {
        let folder = self.folder.join(DEVICES);
        let mut names = vec![FORWARDING.to_owned(), REDIRECTS.to_owned()];
        for entry in fs::read_dir(&folder).map_err(FileError::of("list", &folder))? {
            let device = entry.map_err(FileError::of("list", &folder))?.file_name();
            // `all` is another name of the whole node's switch.
            if device != "all" {
                names.push(format!("{DEVICES}/{}/forwarding", device.to_string_lossy()));
            }
        }
        // A device may disappear meanwhile.
        Ok(names.into_iter().filter_map(|name| self.read(&name).ok().map(|value| (name, value))).collect())
    }

    fn read(&self, name: &str) -> Result<String, FileError> {
        let path = self.folder.join(name);
        let value = fs::read_to_string(&path).map_err(FileError::of("read", path))?;
        Ok(value.trim().to_owned())
    }

    /// Writes a value if it differs, and logs the change.
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
