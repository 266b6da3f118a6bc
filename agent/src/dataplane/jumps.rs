//! The array of the programs that other programs tail-call. Each load of the object has its own
//! array. While an agent replaces the programs of an earlier one, programs of both are attached,
//! and each uses the array of its own load.
//!
//! The kernel empties such an array when only programs hold it, even attached ones. So the agent
//! fills and pins it before it attaches a program of the load, under
//! `programs/<number of the array>/`. The agent removes the pins of other loads when all its
//! programs are in place. Such pins come from loads that were replaced, and from agents that died
//! before they attached anything.

use std::fs;
use std::io;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{Map, ProgramArray};
use aya::programs::Program;
use podwire_common::names;
use podwire_common::names::programs::Jump;
use tracing::info;

use super::attach::missing;
use super::error::DataplaneError;
use super::maps::{self, map_error};
use super::pinned::Pinned;
use super::{Dataplane, pins};
use crate::files::{FileError, absent_is_fine};

/// Fills the array with loaded programs. With a folder of pins, pins the array and returns it held
/// open.
///
/// # Errors
/// [`DataplaneError::Load`], [`DataplaneError::Map`], [`DataplaneError::File`].
pub(super) fn fill(ebpf: &mut Ebpf, folder: Option<&Path>) -> Result<Option<Pinned>, DataplaneError> {
    for jump in Jump::ALL {
        let name = jump.program();
        let Some(Program::SchedClassifier(program)) = ebpf.program(name) else {
            return Err(missing(name));
        };
        let program = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(DataplaneError::load(name))?;
        let array = ebpf.map_mut(names::JUMPS).ok_or_else(|| maps::missing(names::JUMPS))?;
        let mut array = ProgramArray::try_from(array).map_err(map_error("open", names::JUMPS))?;
        array.set(jump as u32, &program, 0).map_err(map_error("write", names::JUMPS))?;
    }
    let (Some(Map::ProgramArray(array)), Some(folder)) = (ebpf.map(names::JUMPS), folder) else {
        return Ok(None);
    };
    let number = array.info().map_err(map_error("look up", names::JUMPS))?.id();
    let folder = pins::load(folder, number);
    fs::create_dir_all(&folder).map_err(FileError::of("create", &folder))?;
    let pin = folder.join(names::JUMPS);
    array.pin(&pin).map_err(io::Error::other).map_err(FileError::of("pin", &pin))?;
    Ok(Pinned::open(&pin).map_err(FileError::of("open the map", &pin))?)
}

impl Dataplane {
    /// Removes the pins of other loads. Call this when none of their programs is attached any more.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub fn forget_other_loads(&self) -> Result<(), DataplaneError> {
        let Some(folder) = &self.bpf_dir else { return Ok(()) };
        // All other pinned maps are in the folder itself.
        let own = self.pinned_maps.iter().find_map(|map| map.path().parent().filter(|load| *load != folder));
        for load in pins::loads(folder)? {
            if Some(load.as_path()) != own {
                absent_is_fine(fs::remove_dir_all(&load)).map_err(FileError::of("remove", &load))?;
                info!(load = %load.display(), "removed: no program of this load is attached any more");
            }
        }
        Ok(())
    }
}
