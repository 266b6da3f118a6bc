//! The folder of pins on the BPF file system. It holds:
//!
//! - maps, by their names;
//! - links, under `links/`;
//! - the pins that belong to one load of the programs, under `programs/`;
//! - the layout's number.
//!
//! # Maps of two layouts
//!
//! While an agent takes over the maps of an earlier layout, maps of both layouts exist side by
//! side. If a later layout has changed a table, the name of the table's pin ends with that layout's
//! number: `TRANSLATIONS-2` beside `TRANSLATIONS`. So each release finds its own maps by their
//! names, and both releases share the tables that are the same in both. A folder for each layout
//! would need a second pin of the shared tables, and would move every map that operators look at.
//!
//! `schema-version` says which layout counts. It changes in one step, when all programs have been
//! replaced. At its next start, the agent of that layout removes the pins that other layouts have
//! left. Such pins come from an upgrade that was cut short at its very end, or that was rolled
//! back.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData};
use podwire_common::abi::{self, SCHEMA_VERSION};
use podwire_common::names;
use podwire_common::names::programs::{CGROUP, UPLINK_LINKS};
use podwire_common::tables::{FIRST_LAYOUT, Table};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use tracing::info;

use super::conversions::{Conversion, conversion};
use super::error::DataplaneError;
use super::pinned::Pinned;
use crate::files::{FileError, absent_is_fine};
use crate::lock::{ClaimError, Held, Lock};

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FILE_SYSTEM: u64 = 0xcafe_4a11;
/// The usual mount point of the BPF file system.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// A symbolic link to the layout's number. Beside folders and pins, a BPF file system can hold only
/// symbolic links.
const SCHEMA: &str = "schema-version";
/// A symbolic link that names a layout with filled maps, and the time until which they are filled:
/// `2-at-8123456789`.
const UPGRADE: &str = "upgrade";
/// The name of a symbolic link until it is renamed to its final name.
const BEGUN: &str = "next-link";
const HELD: Held = Held { name: "the folder of pins", option: "--bpf-dir" };

/// A map of an earlier layout that has a successor in this release.
#[derive(Debug)]
pub(super) struct Earlier {
    pub table: Table,
    /// The layout that last changed it.
    pub layout: u32,
    pub path: PathBuf,
}

/// Prepares the folder for pins of this release's layout. Returns the maps that exist of an earlier
/// layout. `None`: the folder has no other layout.
///
/// # Errors
/// [`DataplaneError::NotBpfFileSystem`]; the errors of [`check`].
pub(super) fn prepare(
    folder: &Path,
    conversions: &[Conversion],
) -> Result<Option<Vec<Earlier>>, DataplaneError> {
    ensure_bpf_file_system(folder)?;
    check(folder, conversions)?;
    let links = links(folder);
    fs::create_dir_all(&links).map_err(FileError::of("create", &links))?;
    match layout(folder)? {
        Some(found) if found != SCHEMA_VERSION => earlier(folder, found).map(Some),
        _ => {
            write_schema(folder)?;
            remove_other_layouts(folder)?;
            Ok(None)
        }
    }
}

/// Locks the folder against other agents. Creates it if it does not exist.
///
/// # Errors
/// [`DataplaneError::Claim`], [`DataplaneError::NotBpfFileSystem`], [`DataplaneError::File`].
pub fn hold(folder: &Path) -> Result<Lock, DataplaneError> {
    ensure_bpf_file_system(folder)?;
    fs::create_dir_all(folder).map_err(FileError::of("create", folder))?;
    Ok(Lock::folder(folder, HELD)?)
}

/// Locks the folder against other agents, if it exists.
///
/// # Errors
/// [`ClaimError::Locked`], [`ClaimError::File`].
pub fn hold_if_there(folder: &Path) -> Result<Option<Lock>, ClaimError> {
    if folder.exists() { Lock::folder(folder, HELD).map(Some) } else { Ok(None) }
}

/// Checks whether this release can use the pins, and changes nothing. It can if:
///
/// - there are no pins;
/// - the pins have its layout;
/// - the pins have an earlier layout, and there are conversions from it.
///
/// # Errors
/// [`DataplaneError::Schema`], [`DataplaneError::NoConversion`], [`DataplaneError::File`].
pub fn check(folder: &Path, conversions: &[Conversion]) -> Result<(), DataplaneError> {
    let mismatch =
        |found: String| DataplaneError::Schema { path: folder.into(), found, expected: SCHEMA_VERSION };
    let Some(found) = layout(folder)? else {
        let has_maps = maps(folder)?.iter().any(|(pin, _)| pin.is_known());
        return if has_maps { Err(mismatch("unknown".into())) } else { Ok(()) };
    };
    if found > SCHEMA_VERSION {
        return Err(mismatch(found.to_string()));
    }
    let earlier = earlier(folder, found)?;
    let mut carried = earlier.iter().filter(|map| map.table.is_carried_over());
    match carried.find(|map| conversion(conversions, map.table, map.layout).is_none()) {
        Some(map) => {
            Err(DataplaneError::NoConversion { path: folder.into(), found, table: map.table.name() })
        }
        None => Ok(()),
    }
}

/// Checks whether this release can read the pinned maps. Returns whether there are any.
///
/// # Errors
/// [`DataplaneError::Schema`], [`DataplaneError::File`].
pub fn are_readable(folder: &Path) -> Result<bool, DataplaneError> {
    match layout(folder)? {
        None => Ok(false),
        Some(SCHEMA_VERSION) => Ok(true),
        Some(found) => {
            let found = found.to_string();
            Err(DataplaneError::Schema { path: folder.into(), found, expected: SCHEMA_VERSION })
        }
    }
}

/// Returns the layout that counts. `None`: there is none yet.
fn layout(folder: &Path) -> Result<Option<u32>, DataplaneError> {
    let Some(text) = read_link(&folder.join(SCHEMA))? else {
        return Ok(None);
    };
    let mismatch =
        |_| DataplaneError::Schema { path: folder.into(), found: text.clone(), expected: SCHEMA_VERSION };
    text.parse().map(Some).map_err(mismatch)
}

/// Returns the maps of layout `found` that have a successor in this release.
fn earlier(folder: &Path, found: u32) -> Result<Vec<Earlier>, DataplaneError> {
    let maps = maps(folder)?;
    let of = |table: Table| {
        let of_table = maps.iter().filter(|(pin, _)| pin.name == table.name() && pin.layout <= found);
        let (pin, path) = of_table.max_by_key(|(pin, _)| pin.layout)?;
        let is_another = pin.layout != table.layout();
        is_another.then(|| Earlier { table, layout: pin.layout, path: path.clone() })
    };
    Ok(Table::ALL.into_iter().filter_map(of).collect())
}

/// The parts of the name of a map's pin.
struct MapPin {
    name: String,
    layout: u32,
}

impl MapPin {
    /// Splits the name of a pin. `None`: no agent gives a map such a name.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (name, layout) = match name.split_once('-') {
            Some((name, number)) => (name, number.parse().ok()?),
            None => (name, FIRST_LAYOUT),
        };
        let is_like_ours =
            name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        is_like_ours.then(|| Self { name: name.into(), layout })
    }

    /// Returns whether this release has a table of that name. A later release may have other
    /// tables.
    fn is_known(&self) -> bool {
        names::maps::ALL.contains(&self.name.as_str())
    }

    fn is_this_layouts(&self) -> bool {
        Table::ALL.iter().any(|table| table.name() == self.name && table.layout() == self.layout)
    }
}

/// Returns every pinned map, of any layout.
fn maps(folder: &Path) -> Result<Vec<(MapPin, PathBuf)>, DataplaneError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let pins = entries(folder)?.into_iter();
    Ok(pins.filter_map(|path| Some((MapPin::of(&path)?, path))).collect())
}

/// Returns the time until which an interrupted upgrade has filled this layout's maps
/// (`CLOCK_MONOTONIC`, nanoseconds). `None`: no upgrade has filled them completely.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn filled_until(folder: &Path) -> Result<Option<u64>, DataplaneError> {
    let text = read_link(&folder.join(UPGRADE))?;
    let parts = text.as_deref().and_then(|text| text.split_once("-at-"));
    let (layout, time) = parts.unwrap_or_default();
    Ok(if layout == SCHEMA_VERSION.to_string() { time.parse().ok() } else { None })
}

/// Writes down until when this layout's maps are filled.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn note_filled(folder: &Path, until: u64) -> Result<(), FileError> {
    replace_link(folder, UPGRADE, &format!("{SCHEMA_VERSION}-at-{until}"))
}

/// Makes this release's layout the one that counts, and removes the pins of other layouts.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn finish_upgrade(folder: &Path) -> Result<(), DataplaneError> {
    replace_link(folder, SCHEMA, &SCHEMA_VERSION.to_string())?;
    remove_other_layouts(folder)
}

/// Removes the pins of other layouts. A later layout is among them if an upgrade from this layout
/// was rolled back.
fn remove_other_layouts(folder: &Path) -> Result<(), DataplaneError> {
    let is_another = |pin: &MapPin| {
        let is_known = pin.is_known() || pin.layout > SCHEMA_VERSION;
        is_known && !pin.is_this_layouts()
    };
    let others = maps(folder)?.into_iter().filter(|(pin, _)| is_another(pin));
    for path in others.map(|(_, path)| path).chain([folder.join(UPGRADE), folder.join(BEGUN)]) {
        absent_is_fine(fs::remove_file(&path)).map_err(FileError::of("remove", path))?;
    }
    Ok(())
}

/// Opens every pinned map, so that the agent can pin it again.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn hold_maps(folder: &Path) -> Result<Vec<Pinned>, FileError> {
    let open = |table| {
        let pin = map(folder, table);
        Pinned::open(&pin).map_err(FileError::of("open the map", pin)).transpose()
    };
    Table::ALL.into_iter().filter_map(open).collect()
}

/// Restores the folder under a running agent, which knows the layout of its maps. Returns whether
/// anything was missing.
///
/// # Errors
/// [`DataplaneError::NotBpfFileSystem`] or [`DataplaneError::File`].
pub(super) fn restore(folder: &Path) -> Result<bool, DataplaneError> {
    let (links, version) = (links(folder), folder.join(SCHEMA));
    if links.exists() && version.is_symlink() {
        return Ok(false);
    }
    ensure_bpf_file_system(folder)?;
    fs::create_dir_all(&links).map_err(FileError::of("create", &links))?;
    write_schema(folder)?;
    Ok(true)
}

/// Returns the uplinks in the pinned map `LINKS`, by ifindex. The result is empty if the map cannot
/// be read.
pub fn uplinks(folder: &Path) -> BTreeSet<u32> {
    let links = MapData::from_pin(map(folder, Table::Links)).ok().map(Map::HashMap);
    let Some(links) = links.and_then(|links| HashMap::<_, u32, abi::Link>::try_from(links).ok()) else {
        return BTreeSet::new();
    };
    let uplinks = links.iter().flatten().filter(|(_, link)| link.kind == abi::LINK_UPLINK);
    uplinks.map(|(index, _)| index).collect()
}

/// Removes every pin of a folder. Does nothing if the folder does not exist.
///
/// - The links go first: their programs are then detached.
/// - The version goes last: as long as it exists, every pin in the folder counts as an agent's, of
///   whichever release.
///
/// # Errors
/// [`FileError::Io`] for each thing that could not be removed.
pub fn remove_all(folder: &Path) -> Vec<FileError> {
    let (links, version) = (links(folder), folder.join(SCHEMA));
    let is_agents = version.is_symlink();
    let is_pin = |path: &PathBuf| {
        *path != version
            && (MapPin::of(path).is_some_and(|pin| pin.is_known()) || is_agents && !path.is_dir())
    };
    let in_folder: Vec<_> = entries(folder).unwrap_or_default().into_iter().filter(is_pin).collect();
    let mut failed = Vec::new();
    let mut note = |outcome: io::Result<()>, path: &Path| {
        failed.extend(absent_is_fine(outcome).map_err(FileError::of("remove", path)).err());
    };
    let is_link = |pin: &PathBuf| is_agents || is_link_of(pin, &UPLINK_LINKS) || is_link_of(pin, &CGROUP);
    for link in entries(&links).unwrap_or_default().into_iter().filter(is_link) {
        note(fs::remove_file(&link), &link);
    }
    note(fs::remove_dir(&links), &links);
    let programs = programs(folder);
    for load in loads(folder).unwrap_or_default() {
        note(fs::remove_dir_all(&load), &load);
    }
    note(fs::remove_dir(&programs), &programs);
    for pin in in_folder.iter().chain([&version]) {
        note(fs::remove_file(pin), pin);
    }
    failed
}

/// Returns the path of a map's pin.
pub fn map(folder: &Path, table: Table) -> PathBuf {
    match table.layout() {
        FIRST_LAYOUT => folder.join(table.name()),
        later => folder.join(format!("{}-{later}", table.name())),
    }
}

/// Returns the folder for the pins that belong to one load of the programs, by the load's number.
pub fn load(folder: &Path, number: u32) -> PathBuf {
    programs(folder).join(number.to_string())
}

/// Returns the parent folder of all loads.
fn programs(folder: &Path) -> PathBuf {
    folder.join("programs")
}

/// Returns the folders of all loads. Skips names that are not numbers: no agent makes them.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn loads(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let folder = programs(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let is_load =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().parse::<u32>().is_ok());
    Ok(entries(&folder)?.into_iter().filter(is_load).collect())
}

/// Returns the folder of pinned links.
pub fn links(folder: &Path) -> PathBuf {
    folder.join("links")
}

/// Returns the path of the pin for the link of a program and an uplink or a [`cgroup`].
pub fn link(folder: &Path, program: &str, interface: &str) -> PathBuf {
    // A device name may contain a dot; names on a BPF file system may not.
    links(folder).join(format!("{program}-{}", interface.replace('.', "%2e")))
}

/// Returns the pinned links of these programs: each program and its device.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn links_of(
    folder: &Path,
    programs: &[&'static str],
) -> Result<Vec<(&'static str, String)>, DataplaneError> {
    let links = list_links(folder)?;
    let of = |pin: &PathBuf| {
        let (program, place) = pin.file_name()?.to_str()?.split_once('-')?;
        let program = programs.iter().find(|known| **known == program)?;
        Some((*program, place.replace("%2e", ".")))
    };
    Ok(links.iter().filter_map(of).collect())
}

/// Returns every pinned link.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn list_links(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    entries(&links(folder))
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(folder).map_err(FileError::of("list", folder))?;
    entries.map(|entry| Ok(entry.map_err(FileError::of("list", folder))?.path())).collect()
}

/// Returns the name that stands for a cgroup where [`link`] takes a device. `id` is the cgroup's
/// number.
pub fn cgroup(id: u64) -> String {
    format!("cgroup-{id}")
}

/// Returns whether a path is a pinned link of one of these programs.
pub fn is_link_of(path: &Path, programs: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('-').is_some_and(|(program, _)| programs.contains(&program))
}

fn ensure_bpf_file_system(folder: &Path) -> Result<(), DataplaneError> {
    if is_bpf_file_system(folder)? {
        return Ok(());
    }
    let mount_point = Path::new(MOUNT_POINT);
    if !folder.starts_with(mount_point) || is_bpf_file_system(mount_point)? {
        return Err(DataplaneError::NotBpfFileSystem { path: folder.into() });
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", mount_point, "bpf", flags, None).map_err(|errno| match errno {
        // A container without SYS_ADMIN may not mount. SYS_ADMIN would not help: the mount would
        // belong to the container, and the pins would end with the container.
        Errno::PERM => DataplaneError::NotBpfFileSystem { path: folder.into() },
        _ => FileError::of("mount a BPF file system at", mount_point)(errno.into()).into(),
    })?;
    info!(path = MOUNT_POINT, "BPF file system mounted");
    Ok(())
}

fn is_bpf_file_system(path: &Path) -> Result<bool, FileError> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let status = rustix::fs::statfs(there)
        .map_err(io::Error::from)
        .map_err(FileError::of("look up the file system of", there))?;
    // The type of the field depends on the architecture; the magic number fits into 32 bits.
    Ok(status.f_type as u64 & 0xffff_ffff == BPF_FILE_SYSTEM)
}

/// Writes the layout's number if it is missing. Call this before the first pin is made, so that
/// pins never remain without a number.
fn write_schema(folder: &Path) -> Result<(), FileError> {
    let path = folder.join(SCHEMA);
    match symlink(SCHEMA_VERSION.to_string(), &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(FileError::of("write", path)(error))
        }
        _ => Ok(()),
    }
}

fn read_link(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_link(path) {
        Ok(text) => Ok(Some(text.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("read", path)(error)),
    }
}

/// Replaces a symbolic link in one step.
fn replace_link(folder: &Path, name: &str, text: &str) -> Result<(), FileError> {
    let (path, begun) = (folder.join(name), folder.join(BEGUN));
    absent_is_fine(fs::remove_file(&begun)).map_err(FileError::of("remove", &begun))?;
    symlink(text, &begun).and_then(|()| fs::rename(&begun, &path)).map_err(FileError::of("write", path))
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
        let map_of_others = folder.join("THEIRS-2");
        let map_of_another_layout = folder.join("ENDPOINTS-2");
        for pin in [&ours, &others, &map_of_others, &map_of_another_layout] {
            fs::write(pin, "").unwrap();
        }
        let failed: Vec<_> = remove_all(folder).iter().map(ToString::to_string).collect();
        assert!(!ours.exists() && others.exists() && map_of_others.exists());
        assert!(!map_of_another_layout.exists());
        assert_eq!(failed.len(), 1, "the folder of links is not empty: {failed:?}");
        write_schema(folder).unwrap();
        let _ = remove_all(folder);
        assert!(!others.exists() && !map_of_others.exists());
    }
}
