//! Loads the embedded object.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use podwire_common::abi::Config;
use podwire_common::names;
use podwire_common::tables::Table;

use super::conversions::CONVERSIONS;
use super::error::DataplaneError;
use super::maps::Maps;
use super::upgrade::Upgrade;
use super::{Dataplane, jumps, pins, skb_layout};

/// The most times that one program is given to the verifier.
const ATTEMPTS: usize = 10;
/// The object, as built by `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/podwire-ebpf"));

/// Loads every program of the embedded object, with maps of the given sizes. With a folder, maps
/// are pinned there by name, and maps that are already pinned are used again with their content.
/// Without a folder, the maps are new and end with the returned value.
///
/// # Errors
/// [`DataplaneError::Load`] with the verifier's answer; [`DataplaneError::SkbLayout`]; the errors
/// of [`pins::prepare`].
pub fn load(
    config: &Config,
    map_sizes: &[(&'static str, u32)],
    bpf_dir: Option<&Path>,
) -> Result<Dataplane, DataplaneError> {
    load_object(OBJECT, config, map_sizes, bpf_dir)
}

/// Loads the object from a file: another build, to be measured against the embedded one.
///
/// # Errors
/// The errors of [`load`], and [`DataplaneError::Load`] when the file cannot be read.
pub fn load_file(
    file: &Path,
    config: &Config,
    map_sizes: &[(&'static str, u32)],
    bpf_dir: Option<&Path>,
) -> Result<Dataplane, DataplaneError> {
    let object = std::fs::read(file).map_err(DataplaneError::load(file.display().to_string()))?;
    load_object(&object, config, map_sizes, bpf_dir)
}

/// Loads another build of the object, like [`load`]. Tests use this for the build that counts
/// helper calls.
///
/// # Errors
/// The errors of [`load`].
pub fn load_object(
    object: &[u8],
    config: &Config,
    map_sizes: &[(&'static str, u32)],
    bpf_dir: Option<&Path>,
) -> Result<Dataplane, DataplaneError> {
    let skb_layout = skb_layout::of_running_kernel()?;
    let mut loader = EbpfLoader::new();
    loader.override_global(names::CONFIG, config, true);
    loader.override_global(names::SKB_LAYOUT, &skb_layout, true);
    for (name, entries) in map_sizes {
        loader.map_max_entries(name, *entries);
    }
    let mut upgrade = None;
    if let Some(folder) = bpf_dir {
        let earlier = pins::prepare(folder, CONVERSIONS)?;
        upgrade = earlier.map(|earlier| Upgrade::begin(folder, earlier, CONVERSIONS)).transpose()?;
        for table in Table::ALL {
            loader.map_pin_path(table.name(), pins::map(folder, table));
        }
    }
    let mut ebpf = loader.load(object).map_err(DataplaneError::load("the BPF object"))?;
    let mut maps = Maps::take(&mut ebpf)?;
    load_programs(&mut ebpf)?;
    let jumps = jumps::fill(&mut ebpf, bpf_dir)?;
    // Only now, after the verifier has accepted all programs: if it refuses one, the earlier
    // release stays as it was.
    if let (Some(upgrade), Some(folder)) = (&mut upgrade, bpf_dir) {
        upgrade.carry_over(folder, &mut maps)?;
    }
    let mut pinned_maps = bpf_dir.map(pins::hold_maps).transpose()?.unwrap_or_default();
    pinned_maps.extend(jumps);
    let bpf_dir = bpf_dir.map(Path::to_path_buf);
    Ok(Dataplane { ebpf, maps, bpf_dir, upgrade, pinned_maps, links: BTreeMap::new() })
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), DataplaneError> {
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => load_patiently(|| program.load()),
            Program::Xdp(program) => load_patiently(|| program.load()),
            Program::CgroupSockAddr(program) => load_patiently(|| program.load()),
            Program::CgroupSock(program) => load_patiently(|| program.load()),
            _ => continue,
        };
        loaded.map_err(DataplaneError::load(name))?;
    }
    Ok(())
}

/// Loads a program, and tries again if the kernel gives up verification. The kernel does so with
/// EAGAIN when a signal or other work waits for the thread (`kernel/bpf/verifier.c`).
fn load_patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
    load()
}
