//! Attaching the programs of this node's own processes to cgroup2, so that they outlive the agent and are replaced without a gap.
//!
//! Attached to the root they run for every process of the machine. They act in this node's network namespace alone, so agents in
//! several namespaces of one machine attach theirs side by side.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError};
use podwire_common::names::programs;

use super::attach::{Attaching, keep, missing};
use super::{Dataplane, link_update, pins};
use crate::error::Error;

impl Dataplane {
    /// Attaches the programs that point this node's own processes at pods behind hostPorts, in place of those that are there.
    ///
    /// # Errors
    /// [`Error::Attach`], [`Error::File`].
    pub fn attach_host_processes(&mut self, cgroup: &Path) -> Result<(), Error> {
        let folder = File::open(cgroup).map_err(Error::file("open the cgroup", cgroup))?;
        let id = folder.metadata().map_err(Error::file("look up the cgroup", cgroup))?.ino();
        let place = pins::cgroup(id);
        for program in programs::CGROUP {
            self.attach_to_cgroup(program, cgroup, &folder, &place)?;
        }
        // What an agent with another `--cgroup-dir` has pinned.
        self.detach_elsewhere(&programs::CGROUP, &[&place], "its cgroup is not the one of --cgroup-dir")
    }

    fn attach_to_cgroup(
        &mut self,
        name: &'static str,
        cgroup: &Path,
        folder: &File,
        place: &str,
    ) -> Result<(), Error> {
        let shown = cgroup.display().to_string();
        let attaching = Attaching { program: name, interface: &shown };
        let pin = self.bpf_dir.as_ref().map(|folder| pins::link(folder, name, place));
        let program: &mut CgroupSockAddr = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| missing(name))?
            .try_into()
            .map_err(|source: ProgramError| attaching.failed(source))?;
        if let Some(pin) = &pin {
            let descriptor = program.fd().map_err(|source| attaching.failed(source))?;
            match link_update::replace_program(pin, descriptor.as_fd()) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // The cgroup is gone, and the kernel gave its number to another: the link is an empty shell.
                Err(_) => fs::remove_file(pin).map_err(Error::file("remove the link", pin))?,
            }
        }
        // By a link it is always one of several (BPF_F_ALLOW_MULTI): the kernel refuses to be told so.
        let id =
            program.attach(folder, CgroupAttachMode::Single).map_err(|source| attaching.failed(source))?;
        let link = FdLink::try_from(program.take_link(id).map_err(|source| attaching.failed(source))?)
            .map_err(|source| attaching.failed(source))?;
        keep(link, pin.as_deref()).map_err(|source| attaching.failed(source))
    }
}
