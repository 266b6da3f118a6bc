//! The kernel switches on which pod traffic through the host stack depends, and their earlier
//! values.
//!
//! The switches of pods' links and of the tunnel's device are gone as soon as these devices are
//! removed. But forwarding of the whole node and of its links stays on. So the agent writes the
//! earlier values into the state folder before it changes them, and `podwire uninstall` restores
//! them.

mod conntrack;

use podwire_cni::protocol::codes;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

use podwire_core::model::Family;
use tracing::info;

use crate::before::Before;
use crate::files::FileError;

/// The switches of forwarding of a family.
struct Names {
    /// The switch of the whole node. When it changes, the kernel also sets the switch of every
    /// device.
    node: &'static str,
    /// The folder with the switches of each device, and of future devices (`default`).
    devices: &'static str,
    /// A switch that the kernel sets to the opposite of the node's (`inet_forward_change`,
    /// net/ipv4/devinet.c).
    opposite: Option<&'static str>,
}

const fn names(family: Family) -> Names {
    match family {
        Family::V4 => Names {
            node: "net/ipv4/ip_forward",
            devices: "net/ipv4/conf",
            opposite: Some("net/ipv4/conf/all/accept_redirects"),
        },
        Family::V6 => {
            Names { node: "net/ipv6/conf/all/forwarding", devices: "net/ipv6/conf", opposite: None }
        }
    }
}

fn is_of_forwarding(name: &str, family: Family) -> bool {
    let Names { node, devices, opposite } = names(family);
    name == node || name.starts_with(devices) || Some(name) == opposite
}

/// Returns whether an agent has changed forwarding, of the node or of a link, in this boot.
pub fn has_changed_forwarding(before: &Before) -> bool {
    let is_of_any = |name: &String| Family::ALL.into_iter().any(|family| is_of_forwarding(name, family));
    before.switches.keys().any(is_of_any)
}

/// The end of the name of the switch by which a device accepts router advertisements.
const ACCEPT_RA: &str = "/accept_ra";
/// Value of `accept_ra` with which a device accepts router advertisements although it forwards.
const ACCEPTS_AS_ROUTER: &str = "2";

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
    fn of_device(family: Family, device: &str, switch: &str, value: &'static str) -> Self {
        Self { name: format!("{}/{device}/{switch}", names(family).devices), value }
    }

    /// Returns the switch for forwarding packets of a family that arrive by a device. The kernel
    /// checks the device's own switch, whatever the node's is. In IPv6 it checks the node's, and
    /// `bpf_fib_lookup` checks the device's.
    pub fn forwarding(family: Family, device: &str) -> Self {
        Self::of_device(family, device, "forwarding", "1")
    }

    /// Returns the switches of the host side of a pod's link.
    pub fn of_pod(device: &str, has_ipv6: bool) -> Vec<Self> {
        let mut switches = vec![Self::forwarding(Family::V4, device)];
        if has_ipv6 {
            switches.push(Self::of_device(Family::V6, device, "disable_ipv6", "0"));
            switches.push(Self::forwarding(Family::V6, device));
        }
        switches
    }

    /// Returns the switches of the tunnel's device. Besides forwarding:
    ///
    /// - `rp_filter` is loose. A packet from a node's own address arrives through the tunnel, but
    ///   its route back leaves by the uplink, so strict mode would drop it. The kernel takes the
    ///   larger of this value and `all`'s, so a strict `all` does no harm.
    /// - In IPv6 the device has no addresses but those that the agent gives it: it generates none
    ///   (`addr_gen_mode` 1) and accepts no router advertisements.
    /// - On a node without IPv6 pods, the device has no IPv6. Otherwise the kernel would send
    ///   router solicitations and group reports into the tunnel.
    pub fn of_tunnel(device: &str, has_ipv6: bool) -> Vec<Self> {
        let ipv6 = |switch, value| Self::of_device(Family::V6, device, switch, value);
        let mut switches =
            vec![Self::forwarding(Family::V4, device), Self::of_device(Family::V4, device, "rp_filter", "2")];
        switches.extend(match has_ipv6 {
            false => vec![ipv6("disable_ipv6", "1")],
            true => vec![
                ipv6("addr_gen_mode", "1"),
                ipv6("accept_ra", "0"),
                ipv6("disable_ipv6", "0"),
                Self::forwarding(Family::V6, device),
            ],
        });
        switches
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
    /// `learning`: links that may learn their routes from router advertisements (IPv6). A node that
    /// forwards does not accept them, and the kernel removes the routes that it has learned, unless
    /// `accept_ra` is 2. If the agent has switched forwarding on, it also sets `accept_ra` of links
    /// that come later, and sets it again.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn enable_forwarding(
        &self,
        family: Family,
        learning: &[&str],
        state_dir: &Path,
    ) -> Result<bool, SwitchError> {
        let node = names(family).node;
        let is_on = self.read(node)? == "1";
        let accepts = |link: &str| format!("{}/{link}{ACCEPT_RA}", names(Family::V6).devices);
        let learning: Vec<_> = learning.iter().filter(|link| self.has(&accepts(link), "1")).collect();
        if is_on && learning.is_empty() {
            return Ok(false);
        }
        let before = Before::load(state_dir)?;
        if is_on && !before.switches.contains_key(node) {
            // Forwarding was on before the first agent, so no link has learned anything.
            return Ok(false);
        }
        let mut with_these = before.clone();
        let mut accepting = Vec::new();
        for link in learning {
            let forwards = Switch::forwarding(Family::V6, link).name;
            let was_learning = match before.switches.get(&forwards) {
                Some(before) => before == "0",
                // A link that came after the agent had switched forwarding on.
                None => is_on || self.has(&forwards, "0"),
            };
            if was_learning {
                with_these.switches.entry(accepts(link)).or_insert_with(|| "1".into());
                accepting.push(accepts(link));
            }
        }
        if !before.switches.contains_key(node) {
            with_these.switches.extend(self.switched_with_forwarding(family)?);
        }
        with_these.save(state_dir)?;
        let set = || {
            accepting.iter().try_for_each(|accepts| self.set(accepts, ACCEPTS_AS_ROUTER))?;
            self.set(node, "1")
        };
        or_as_before(set(), &before, state_dir)?;
        Ok(!is_on)
    }

    /// Like [`Self::enable_forwarding`], for one of the node's links.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn enable_forwarding_of(
        &self,
        family: Family,
        device: &str,
        state_dir: &Path,
    ) -> Result<bool, SwitchError> {
        let switch = Switch::forwarding(family, device);
        let Some(found) = self.found(&switch)? else {
            return Ok(false);
        };
        let before = Before::load(state_dir)?;
        let mut with_this = before.clone();
        with_this.switches.entry(switch.name.clone()).or_insert(found);
        with_this.save(state_dir)?;
        or_as_before(self.set(&switch.name, "1"), &before, state_dir)?;
        Ok(true)
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

    /// Switches forwarding of a family off again, if the agent switched it on in this boot and it
    /// is still on. Also restores the switches that the agent or the kernel changed at the same
    /// time, if they still have the values that they got then.
    ///
    /// # Errors
    /// [`SwitchError::File`], [`SwitchError::ReadOnly`].
    pub fn restore_forwarding(&self, family: Family, before: &Before) -> Result<Forwarding, SwitchError> {
        let Names { node, opposite, .. } = names(family);
        let before: BTreeMap<_, _> =
            before.switches.iter().filter(|(name, _)| is_of_forwarding(name, family)).collect();
        if before.is_empty() {
            return Ok(Forwarding::NotChanged);
        }
        if self.read(node)? != "1" {
            // No other program has changed `accept_ra` together with forwarding.
            for (name, value) in before {
                if name.ends_with(ACCEPT_RA) && self.has(name, ACCEPTS_AS_ROUTER) {
                    self.set(name, value)?;
                }
            }
            return Ok(Forwarding::ChangedSince);
        }
        let is_node_wide = before.keys().any(|name| *name == node);
        let left_at = |name: &str| match name {
            _ if Some(name) == opposite => "0",
            _ if name.ends_with(ACCEPT_RA) => ACCEPTS_AS_ROUTER,
            _ => "1",
        };
        let mut wanted = BTreeMap::new();
        for (name, value) in before {
            if self.has(name, left_at(name)) {
                wanted.insert(name.clone(), value.clone());
            }
        }
        if is_node_wide {
            for (name, now) in self.switched_with_forwarding(family)? {
                // A device that came later gets the value that it would have if forwarding had
                // never been on.
                let otherwise = if now == left_at(&name) { "0".into() } else { now };
                wanted.entry(name).or_insert(otherwise);
            }
            self.set(node, "0")?;
        }
        for (name, value) in wanted.iter().filter(|(name, _)| *name != node) {
            self.set(name, value)?;
        }
        Ok(Forwarding::AsBefore)
    }

    /// Returns the current values of everything that changes with the whole node's forwarding, by
    /// path below the folder.
    fn switched_with_forwarding(&self, family: Family) -> Result<BTreeMap<String, String>, FileError> {
        let Names { node, devices, opposite } = names(family);
        let folder = self.folder.join(devices);
        let mut names: Vec<_> = [Some(node), opposite].into_iter().flatten().map(str::to_owned).collect();
        for entry in fs::read_dir(&folder).map_err(FileError::of("list", &folder))? {
            let device = entry.map_err(FileError::of("list", &folder))?.file_name();
            // `all` is another name of the whole node's switch.
            if device != "all" {
                names.push(format!("{devices}/{}/forwarding", device.to_string_lossy()));
            }
        }
        // A device may disappear meanwhile.
        Ok(names.into_iter().filter_map(|name| self.read(&name).ok().map(|value| (name, value))).collect())
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.read(name).is_ok_and(|now| now == value)
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

/// If forwarding could not be switched on, saves the previous record again: when another program
/// switches it on later, uninstall must not undo that.
fn or_as_before(set: Result<(), SwitchError>, before: &Before, state_dir: &Path) -> Result<(), SwitchError> {
    if set.is_err() {
        before.save(state_dir)?;
    }
    set
}
