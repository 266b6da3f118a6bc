//! Objects that the agent holds open beside their pins, and the repair of pins and links that other
//! tools remove.
//!
//! Any tool with write access to the folder can remove a pin, and `bpftool` can detach a link.
//! While the agent holds the objects open, a removed pin does not affect the data path. The agent
//! finds detached links and attaches the programs again.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::links::FdLink;
use podwire_common::names::programs;
use tracing::info;

use super::attach::{Attaching, missing};
use super::error::DataplaneError;
use super::pinned::Pinned;
use super::{Dataplane, pins};
use crate::files::{FileError, absent_is_fine};

/// A link that no longer runs the agent's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The program.
    pub program: String,
    /// The device or the cgroup, as the name of the link's pin has it.
    pub place: String,
    /// What the agent found instead: another program, or none.
    pub found: String,
}

impl Dataplane {
    /// Returns the kernel's number of a loaded program.
    ///
    /// # Errors
    /// [`DataplaneError::Load`].
    pub fn program_id(&self, name: &'static str) -> Result<u32, DataplaneError> {
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        Ok(program.info().map_err(DataplaneError::load(name))?.id())
    }

    /// Restores missing pins and the version of the layout. Returns the names of the objects that
    /// were missing. Does nothing while the agent takes over maps of an earlier layout, because the
    /// earlier layout still counts then.
    ///
    /// # Errors
    /// [`DataplaneError::NotBpfFileSystem`], [`DataplaneError::File`]: the caller must try again
    /// later.
    pub fn repair_pins(&self) -> Result<Vec<String>, DataplaneError> {
        let Some(folder) = self.bpf_dir.as_ref().filter(|_| self.upgrade.is_none()) else {
            return Ok(Vec::new());
        };
        let mut repaired = Vec::new();
        if pins::restore(folder)? {
            repaired.push("the folder".to_owned());
        }
        for object in self.pinned_maps.iter().chain(self.links.values()) {
            if !object.path().exists() {
                let folder = object.path().parent().unwrap_or(folder);
                fs::create_dir_all(folder).map_err(FileError::of("create", folder))?;
                object.pin().map_err(FileError::of("pin again", object.path()))?;
                repaired.push(name_of(object.path()));
            }
        }
        Ok(repaired)
    }

    /// Drops the links that another tool has detached or given another program, and returns them.
    /// The caller must attach their programs again; that takes over or removes the pins.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub fn take_lost_links(&mut self) -> Result<Vec<Lost>, DataplaneError> {
        let mut lost = Vec::new();
        for (pin, link) in &self.links {
            let name = name_of(pin);
            let (program, place) = name.split_once('-').unwrap_or((&name, ""));
            let attached = link.attached_program().map_err(FileError::of("look up the link", pin))?;
            let loaded = self.ebpf.program(program).and_then(|program| program.info().ok());
            if attached.is_none() || attached != loaded.map(|info| info.id()) {
                let found = attached.map_or("no program".into(), |id| format!("program {id}"));
                lost.push((pin.clone(), Lost { program: program.into(), place: place.into(), found }));
            }
        }
        self.links.retain(|pin, _| !lost.iter().any(|(lost, _)| lost == pin));
        Ok(lost.into_iter().map(|(_, lost)| lost).collect())
    }

    /// Replaces the program in a pinned link. `false`: there is no such link, or its target is
    /// gone; then the pin is removed, too.
    pub(super) fn take_over(
        &mut self,
        name: &'static str,
        pin: Option<&Path>,
    ) -> Result<bool, DataplaneError> {
        let Some(pin) = pin else {
            return Ok(false);
        };
        let there = Pinned::open(pin).map_err(FileError::of("open the link", pin))?;
        let Some(link) = there.or_else(|| self.links.remove(pin)) else {
            return Ok(false);
        };
        let program = self.ebpf.program(name).ok_or_else(|| missing(name))?;
        let program = program.fd().map_err(DataplaneError::load(name))?;
        let taken = link.replace_program(program.as_fd()).is_ok();
        if taken {
            self.links.insert(pin.into(), link);
        } else {
            // The device or the cgroup is gone; another one may have its name or number. The link
            // has no effect any more.
            self.links.remove(pin);
            remove(pin)?;
        }
        Ok(taken)
    }

    /// Makes sure that the pins with a device's name belong to that device. A device may have got
    /// another name, or another device may have got this name. Links of the other device are
    /// removed.
    ///
    /// # Errors
    /// [`DataplaneError::File`].
    pub(super) fn name_links_of(&mut self, index: u32, interface: &str) -> Result<(), DataplaneError> {
        let Some(folder) = self.bpf_dir.clone() else {
            return Ok(());
        };
        for (program, name) in pins::links_of(&folder, &programs::UPLINK_LINKS)? {
            let (pin, wanted) =
                (pins::link(&folder, program, &name), pins::link(&folder, program, interface));
            let Some(device) = self.device_of(&pin)? else { continue };
            if device == index && name != interface {
                self.detach(program, interface)?;
                if let Some(mut link) = self.links.remove(&pin) {
                    link.rename(&wanted).map_err(FileError::of("rename the link", &pin))?;
                    self.links.insert(wanted, link);
                }
            } else if device != index && name == interface {
                self.detach(program, interface)?;
            }
        }
        Ok(())
    }

    fn device_of(&self, pin: &Path) -> Result<Option<u32>, DataplaneError> {
        let device = self.links.get(pin).map(Pinned::device).transpose();
        Ok(device.map_err(FileError::of("look up the link", pin))?.flatten())
    }

    /// Keeps a link. With a pin, the link lives until the pin is removed; without a pin, until the
    /// process ends.
    pub(super) fn keep(
        &mut self,
        link: FdLink,
        pin: Option<&Path>,
        attaching: &Attaching<'_>,
    ) -> Result<(), DataplaneError> {
        let Some(pin) = pin else {
            #[expect(clippy::disallowed_methods, reason = "the kernel closes the link with the process")]
            std::mem::forget(link);
            return Ok(());
        };
        link.pin(pin).map_err(|source| attaching.failed(source))?;
        let held = Pinned::open(pin).map_err(|source| attaching.failed(source))?;
        self.links.extend(held.map(|held| (pin.to_path_buf(), held)));
        Ok(())
    }

    /// Removes the pinned link of a program and a device or cgroup. Does nothing if there is none.
    pub(super) fn detach(&mut self, program: &str, place: &str) -> Result<(), FileError> {
        let Some(folder) = &self.bpf_dir else {
            return Ok(());
        };
        let pin = pins::link(folder, program, place);
        self.links.remove(&pin);
        remove(&pin)
    }

    /// Removes the pinned links that `concerned` selects, except the links of `programs` at
    /// `places`.
    pub(super) fn detach_others(
        &mut self,
        concerned: impl Fn(&Path) -> bool,
        programs: &[&str],
        places: &[&str],
        why: &str,
    ) -> Result<(), DataplaneError> {
        let Some(folder) = &self.bpf_dir else {
            return Ok(());
        };
        let wanted: Vec<_> = places
            .iter()
            .flat_map(|place| programs.iter().map(|program| pins::link(folder, program, place)))
            .collect();
        for pin in pins::list_links(folder)? {
            if concerned(&pin) && !wanted.contains(&pin) {
                self.links.remove(&pin);
                remove(&pin)?;
                info!(link = %pin.display(), "program detached: {why}");
            }
        }
        Ok(())
    }
}

fn name_of(pin: &Path) -> String {
    pin.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn remove(pin: &Path) -> Result<(), FileError> {
    absent_is_fine(fs::remove_file(pin)).map_err(FileError::of("remove the link", pin))
}
