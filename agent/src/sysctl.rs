//! The kernel switches that pod traffic through the host stack depends on, and what they were before.
//!
//! Those of the tunnel's device go with it. Forwarding is the whole node's: what was found is written into the state folder before
//! it is changed, and `podwire uninstall` goes by that.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::info;

use crate::before::Before;
use crate::error::Error;

const FORWARDING: &str = "net/ipv4/ip_forward";
/// Of each device, and of those to come (`default`): the kernel sets them all with the whole node's.
const DEVICES: &str = "net/ipv4/conf";
/// The kernel sets it to the opposite of the whole node's forwarding (`inet_forward_change`, net/ipv4/devinet.c).
const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";

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
    /// first.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::ReadOnlySwitch`].
    pub fn enable_forwarding(&self, state_dir: &Path) -> Result<(), Error> {
        if self.read(FORWARDING)? == "1" {
            return Ok(());
        }
        let mut before = Before::load(state_dir)?;
        before.switches = self.switched_with_forwarding()?;
        before.save(state_dir)?;
        self.set(FORWARDING, "1")
    }

    /// Switches forwarding off again if the agent has switched it on, in this boot, and it is still on; and gives back what the kernel
    /// changes with it, where that is still as it was left.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::ReadOnlySwitch`].
    pub fn restore_forwarding(&self, before: &Before) -> Result<Forwarding, Error> {
        if before.switches.is_empty() {
            return Ok(Forwarding::NotChanged);
        }
        if self.read(FORWARDING)? != "1" {
            return Ok(Forwarding::ChangedSince);
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

    /// Loose reverse path filter: what arrives through the tunnel from a node's own address would be routed back by the
    /// uplink, and strict mode drops it. The kernel takes the larger of this value and `all`'s, so a strict `all` does no
    /// harm.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::ReadOnlySwitch`].
    pub fn loosen_reverse_path_filter(&self, device: &str) -> Result<(), Error> {
        self.set(&format!("net/ipv4/conf/{device}/rp_filter"), "2")
    }

    /// The tunnel carries IPv4 only: without this the kernel sends router solicitations and group reports into it.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::ReadOnlySwitch`].
    pub fn disable_ipv6(&self, device: &str) -> Result<(), Error> {
        let name = format!("net/ipv6/conf/{device}/disable_ipv6");
        // Absent on a kernel without IPv6, and on a device with an MTU below IPv6's 1280.
        if self.folder.join(&name).exists() { self.set(&name, "1") } else { Ok(()) }
    }

    /// All that writing the whole node's forwarding changes, by path below the folder, as it is now.
    fn switched_with_forwarding(&self) -> Result<BTreeMap<String, String>, Error> {
        let folder = self.folder.join(DEVICES);
        let mut names = vec![FORWARDING.to_owned(), REDIRECTS.to_owned()];
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let device = entry.map_err(Error::file("list", &folder))?.file_name();
            // `all` is the whole node's switch by another name.
            if device != "all" {
                names.push(format!("{DEVICES}/{}/forwarding", device.to_string_lossy()));
            }
        }
        // A device may go in between.
        Ok(names.into_iter().filter_map(|name| self.read(&name).ok().map(|value| (name, value))).collect())
    }

    fn read(&self, name: &str) -> Result<String, Error> {
        let path = self.folder.join(name);
        let value = fs::read_to_string(&path).map_err(Error::file("read", path))?;
        Ok(value.trim().to_owned())
    }

    /// Writes only what is not so already, and says what it changed.
    fn set(&self, name: &str, value: &str) -> Result<(), Error> {
        let before = self.read(name)?;
        if before == value {
            return Ok(());
        }
        let path = self.folder.join(name);
        fs::write(&path, value).map_err(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnlySwitch { path: path.clone() },
            _ => Error::file("write", &path)(error),
        })?;
        info!(sysctl = name, from = before, to = value, "kernel switch set");
        Ok(())
    }
}
