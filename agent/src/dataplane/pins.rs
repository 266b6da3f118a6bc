//! The folder of pins on the BPF file system: maps by their names, links under `links/`, and the layout's version.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use podwire_common::abi::SCHEMA_VERSION;
use podwire_common::names;
use podwire_common::names::programs::{CGROUP, UPLINK_LINKS};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use tracing::info;

use super::pinned::Pinned;
use crate::error::{Error, absent_is_fine};
use crate::lock::{Held, Lock};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FILE_SYSTEM: u64 = 0xcafe_4a11;
/// Where a BPF file system is expected.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// A symbolic link to the version: the one thing beside folders and pins that a BPF file system can hold.
const SCHEMA: &str = "schema-version";
const HELD: Held = Held { name: "the folder of pins", option: "--bpf-dir" };

/// Makes the folder ready for pins of this release's layout.
///
/// # Errors
/// [`Error::NotBpfFileSystem`], [`Error::Schema`] or [`Error::File`].
pub fn prepare(folder: &Path) -> Result<(), Error> {
    ensure_bpf_file_system(folder)?;
    check(folder)?;
    let links = links(folder);
    fs::create_dir_all(&links).map_err(Error::file("create", &links))?;
    write_schema(folder)
}

/// Holds the folder, which is made if it is not there, against other agents.
///
/// # Errors
/// [`Error::Locked`], [`Error::NotBpfFileSystem`], [`Error::File`].
pub fn hold(folder: &Path) -> Result<Lock, Error> {
    ensure_bpf_file_system(folder)?;
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    Lock::folder(folder, HELD)
}

/// The same if it is there.
///
/// # Errors
/// [`Error::Locked`], [`Error::File`].
pub fn hold_if_there(folder: &Path) -> Result<Option<Lock>, Error> {
    if folder.exists() { Lock::folder(folder, HELD).map(Some) } else { Ok(None) }
}

/// Whether this release can use the pins: they have its layout, or there are none. Touches nothing.
///
/// # Errors
/// [`Error::Schema`], [`Error::File`].
pub fn check(folder: &Path) -> Result<(), Error> {
    let path = folder.join(SCHEMA);
    let mismatch = |found: String| Error::Schema { path: folder.into(), found, expected: SCHEMA_VERSION };
    match fs::read_link(&path) {
        Ok(found) if found == Path::new(&SCHEMA_VERSION.to_string()) => Ok(()),
        Ok(found) => Err(mismatch(found.display().to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if names::maps::ALL.iter().any(|name| map(folder, name).exists()) {
                return Err(mismatch("unknown".into()));
            }
            Ok(())
        }
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Opens every pinned map, so that it can be pinned again.
///
/// # Errors
/// [`Error::File`].
pub(super) fn hold_maps(folder: &Path) -> Result<Vec<Pinned>, Error> {
    let open = |name: &&str| {
        let pin = map(folder, name);
        Pinned::open(&pin).map_err(Error::file("open the map", pin)).transpose()
    };
    names::maps::ALL.iter().filter_map(open).collect()
}

/// Makes the folder anew under a running agent, which knows whose layout the maps have. Says whether anything was missing.
///
/// # Errors
/// [`Error::NotBpfFileSystem`] or [`Error::File`].
pub(super) fn restore(folder: &Path) -> Result<bool, Error> {
    let (links, version) = (links(folder), folder.join(SCHEMA));
    if links.exists() && version.is_symlink() {
        return Ok(false);
    }
    ensure_bpf_file_system(folder)?;
    fs::create_dir_all(&links).map_err(Error::file("create", &links))?;
    write_schema(folder)?;
    Ok(true)
}

/// Names of the devices that pinned links of uplinks' programs are for.
pub fn uplinks(folder: &Path) -> BTreeSet<String> {
    let links = links_of(folder, &[names::programs::FROM_UPLINK]).unwrap_or_default();
    links.into_iter().map(|(_, device)| device).collect()
}

/// Removes every pin of a folder: first the links, with which programs come off what they are attached to; the version last, by which
/// the folder is known to be an agent's alone, whatever release's. Nothing happens when it is not there.
///
/// # Errors
/// [`Error::File`] for each thing that could not be removed.
pub fn remove_all(folder: &Path) -> Vec<Error> {
    let (links, version) = (links(folder), folder.join(SCHEMA));
    let is_agents = version.is_symlink();
    let is_pin = |path: &PathBuf| {
        let known = names::maps::ALL.iter().any(|name| map(folder, name) == *path);
        *path != version && (known || is_agents && !path.is_dir())
    };
    let in_folder: Vec<_> = entries(folder).unwrap_or_default().into_iter().filter(is_pin).collect();
    let mut failed = Vec::new();
    let mut note = |outcome: io::Result<()>, path: &Path| {
        failed.extend(absent_is_fine(outcome).map_err(Error::file("remove", path)).err());
    };
    let is_link = |pin: &PathBuf| is_agents || is_link_of(pin, &UPLINK_LINKS) || is_link_of(pin, &CGROUP);
    for link in entries(&links).unwrap_or_default().into_iter().filter(is_link) {
        note(fs::remove_file(&link), &link);
    }
    note(fs::remove_dir(&links), &links);
    for pin in in_folder.iter().chain([&version]) {
        note(fs::remove_file(pin), pin);
    }
    failed
}

/// Where a map is pinned.
pub fn map(folder: &Path, name: &str) -> PathBuf {
    folder.join(name)
}

/// The folder of pinned links.
pub fn links(folder: &Path) -> PathBuf {
    folder.join("links")
}

/// Where the link of a program and an uplink, or a [`cgroup`], is pinned.
pub fn link(folder: &Path, program: &str, interface: &str) -> PathBuf {
    // A device name may hold a dot, which names on a BPF file system may not.
    links(folder).join(format!("{program}-{}", interface.replace('.', "%2e")))
}

/// The pinned links of these programs: which, and the device.
///
/// # Errors
/// [`Error::File`].
pub(super) fn links_of(
    folder: &Path,
    programs: &[&'static str],
) -> Result<Vec<(&'static str, String)>, Error> {
    let links = list_links(folder)?;
    let of = |pin: &PathBuf| {
        let (program, place) = pin.file_name()?.to_str()?.split_once('-')?;
        let program = programs.iter().find(|known| **known == program)?;
        Some((*program, place.replace("%2e", ".")))
    };
    Ok(links.iter().filter_map(of).collect())
}

/// Every pinned link.
///
/// # Errors
/// [`Error::File`].
pub(super) fn list_links(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    entries(&links(folder))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
    entries.map(|entry| Ok(entry.map_err(Error::file("list", folder))?.path())).collect()
}

/// What stands for a cgroup, given by its number, where [`link`] takes a device.
pub fn cgroup(id: u64) -> String {
    format!("cgroup-{id}")
}

/// Whether a path is a pinned link of one of these programs.
pub fn is_link_of(path: &Path, programs: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('-').is_some_and(|(program, _)| programs.contains(&program))
}

fn ensure_bpf_file_system(folder: &Path) -> Result<(), Error> {
    if is_bpf_file_system(folder)? {
        return Ok(());
    }
    let mount_point = Path::new(MOUNT_POINT);
    if !folder.starts_with(mount_point) || is_bpf_file_system(mount_point)? {
        return Err(Error::NotBpfFileSystem { path: folder.into() });
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", mount_point, "bpf", flags, None).map_err(|errno| match errno {
        // A container without SYS_ADMIN. With it the mount would be the container's, and the pins would end with that.
        Errno::PERM => Error::NotBpfFileSystem { path: folder.into() },
        _ => Error::file("mount a BPF file system at", mount_point)(errno.into()),
    })?;
    info!(path = MOUNT_POINT, "BPF file system mounted");
    Ok(())
}

fn is_bpf_file_system(path: &Path) -> Result<bool, Error> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let status = rustix::fs::statfs(there)
        .map_err(io::Error::from)
        .map_err(Error::file("look up the file system of", there))?;
    // The field's type is the architecture's own; the magic number fits 32 bits.
    Ok(status.f_type as u64 & 0xffff_ffff == BPF_FILE_SYSTEM)
}

/// Writes the version, unless it is there. Before the first pin: pins without a version are never left behind.
fn write_schema(folder: &Path) -> Result<(), Error> {
    let path = folder.join(SCHEMA);
    match symlink(SCHEMA_VERSION.to_string(), &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::file("write", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_folder_that_is_no_agents_only_what_bears_our_names_goes() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (ours, others) = (link(folder, CGROUP[0], "cgroup-1"), links(folder).join("another_tools-eth0"));
        fs::create_dir_all(links(folder)).unwrap();
        let map_of_others = folder.join("theirs");
        for pin in [&ours, &others, &map_of_others] {
            fs::write(pin, "").unwrap();
        }
        let failed: Vec<_> = remove_all(folder).iter().map(ToString::to_string).collect();
        assert!(!ours.exists() && others.exists() && map_of_others.exists());
        assert_eq!(failed.len(), 1, "the folder of links is not empty: {failed:?}");
        write_schema(folder).unwrap();
        let _ = remove_all(folder);
        assert!(!others.exists() && !map_of_others.exists());
    }
}
