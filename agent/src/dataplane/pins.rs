//! The folder of pins on the BPF file system: maps by their names, links under `links/`, what each load of the programs has for itself
//! under `programs/`, and the layout's number.
//!
//! # Maps of two layouts
//!
//! While an agent takes over the maps of an earlier layout, those of both are there side by side. The
//! pin of a table that a later layout has changed bears that layout's number: `TRANSLATIONS-2` beside
//! `TRANSLATIONS`. So each release finds its own maps by their names, and both releases use the tables
//! that are the same in both. Folders for each layout would need a second pin of those, and would move
//! every map that operators look at.
//!
//! `schema-version` says whose layout counts. It changes in one step, when all programs are the new
//! ones. The agent of that layout removes every other layout's pins at its next start, if they are
//! still there: those of an upgrade that was cut short at its very end, or that was rolled back.

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
/// Where a BPF file system is expected.
const MOUNT_POINT: &str = "/sys/fs/bpf";
/// A symbolic link to the layout's number: the one thing beside folders and pins that a BPF file system can hold.
const SCHEMA: &str = "schema-version";
/// A symbolic link to the number of a layout whose maps have been filled, and until when: `2-at-8123456789`.
const UPGRADE: &str = "upgrade";
/// A symbolic link before it has its name.
const BEGUN: &str = "next-link";
const HELD: Held = Held { name: "the folder of pins", option: "--bpf-dir" };

/// A map of an earlier layout that this release has another one for.
#[derive(Debug)]
pub(super) struct Earlier {
    pub table: Table,
    /// The layout that changed it last.
    pub layout: u32,
    pub path: PathBuf,
}

/// Makes the folder ready for pins of this release's layout. Gives the maps of an earlier one that are
/// there; `None`: the folder has no other layout.
///
/// # Errors
/// [`DataplaneError::NotBpfFileSystem`]; those of [`check`].
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

/// Holds the folder, which is made if it is not there, against other agents.
///
/// # Errors
/// [`DataplaneError::Claim`], [`DataplaneError::NotBpfFileSystem`], [`DataplaneError::File`].
pub fn hold(folder: &Path) -> Result<Lock, DataplaneError> {
    ensure_bpf_file_system(folder)?;
    fs::create_dir_all(folder).map_err(FileError::of("create", folder))?;
    Ok(Lock::folder(folder, HELD)?)
}

/// The same if it is there.
///
/// # Errors
/// [`ClaimError::Locked`], [`ClaimError::File`].
pub fn hold_if_there(folder: &Path) -> Result<Option<Lock>, ClaimError> {
    if folder.exists() { Lock::folder(folder, HELD).map(Some) } else { Ok(None) }
}

/// Whether this release can use the pins: there are none, or they have its layout, or an earlier one
/// from which there are conversions. Touches nothing.
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

/// The layout that counts. `None`: there is none yet.
fn layout(folder: &Path) -> Result<Option<u32>, DataplaneError> {
    let Some(text) = read_link(&folder.join(SCHEMA))? else {
        return Ok(None);
    };
    let mismatch =
        |_| DataplaneError::Schema { path: folder.into(), found: text.clone(), expected: SCHEMA_VERSION };
    text.parse().map(Some).map_err(mismatch)
}

/// The maps of the layout that was found which this release has other ones for.
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

/// What the name of a map's pin says.
struct MapPin {
    name: String,
    layout: u32,
}

impl MapPin {
    /// `None`: no agent gives a map such a name.
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (name, layout) = match name.split_once('-') {
            Some((name, number)) => (name, number.parse().ok()?),
            None => (name, FIRST_LAYOUT),
        };
        let is_like_ours = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        is_like_ours.then(|| Self { name: name.into(), layout })
    }

    /// Whether this release has a table of that name. A later one may have others.
    fn is_known(&self) -> bool {
        names::maps::ALL.contains(&self.name.as_str())
    }

    fn is_this_layouts(&self) -> bool {
        Table::ALL.iter().any(|table| table.name() == self.name && table.layout() == self.layout)
    }
}

/// Every pinned map, of whichever layout.
fn maps(folder: &Path) -> Result<Vec<(MapPin, PathBuf)>, DataplaneError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let pins = entries(folder)?.into_iter();
    Ok(pins.filter_map(|path| Some((MapPin::of(&path)?, path))).collect())
}

/// Until when this layout's maps were filled by an upgrade that was cut short (`CLOCK_MONOTONIC`,
/// nanoseconds). `None`: they were not, or not to the end.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn filled_until(folder: &Path) -> Result<Option<u64>, DataplaneError> {
    let text = read_link(&folder.join(UPGRADE))?;
    let parts = text.as_deref().and_then(|text| text.split_once("-at-"));
    let (layout, time) = parts.unwrap_or_default();
    Ok(if layout == SCHEMA_VERSION.to_string() { time.parse().ok() } else { None })
}

/// Notes until when this layout's maps are filled.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn note_filled(folder: &Path, until: u64) -> Result<(), FileError> {
    replace_link(folder, UPGRADE, &format!("{SCHEMA_VERSION}-at-{until}"))
}

/// Says that this release's layout counts, and removes the others' pins.
///
/// # Errors
/// [`DataplaneError::File`].
pub(super) fn finish_upgrade(folder: &Path) -> Result<(), DataplaneError> {
    replace_link(folder, SCHEMA, &SCHEMA_VERSION.to_string())?;
    remove_other_layouts(folder)
}

/// Those of an upgrade from this layout are removed, too: it was rolled back.
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

/// Opens every pinned map, so that it can be pinned again.
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

/// Makes the folder anew under a running agent, which knows whose layout the maps have. Says whether anything was missing.
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

/// The uplinks that the pinned `LINKS` names, by ifindex. None if the map cannot be read.
pub fn uplinks(folder: &Path) -> BTreeSet<u32> {
    let links = MapData::from_pin(map(folder, Table::Links)).ok().map(Map::HashMap);
    let Some(links) = links.and_then(|links| HashMap::<_, u32, abi::Link>::try_from(links).ok()) else {
        return BTreeSet::new();
    };
    let uplinks = links.iter().flatten().filter(|(_, link)| link.kind == abi::LINK_UPLINK);
    uplinks.map(|(index, _)| index).collect()
}

/// Removes every pin of a folder: first the links, with which programs come off what they are attached to; the version last, by which
/// the folder is known to be an agent's alone, whatever release's. Nothing happens when it is not there.
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

/// Where a map is pinned.
pub fn map(folder: &Path, table: Table) -> PathBuf {
    match table.layout() {
        FIRST_LAYOUT => folder.join(table.name()),
        later => folder.join(format!("{}-{later}", table.name())),
    }
}

/// The folder of what one load of the programs has for itself, by its number.
pub fn load(folder: &Path, number: u32) -> PathBuf {
    programs(folder).join(number.to_string())
}

/// The folder of those.
fn programs(folder: &Path) -> PathBuf {
    folder.join("programs")
}

/// What every load has for itself that is there. No agent makes anything there whose name is not a number.
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

/// Every pinned link.
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

/// What stands for a cgroup, given by its number, where [`link`] takes a device.
pub fn cgroup(id: u64) -> String {
    format!("cgroup-{id}")
}

/// Whether a path is a pinned link of one of these programs.
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
        // A container without SYS_ADMIN. With it the mount would be the container's, and the pins would end with that.
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
    // The field's type is the architecture's own; the magic number fits 32 bits.
    Ok(status.f_type as u64 & 0xffff_ffff == BPF_FILE_SYSTEM)
}

/// Writes the layout's number, unless it is there. Before the first pin: pins without a number are never left behind.
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

/// In one step, in place of what is there.
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
