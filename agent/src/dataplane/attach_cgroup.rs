//! Attaches the programs for this node's own processes to cgroup2. They outlive the agent and are
//! replaced without a gap.
//!
//! A program at the root of cgroup2 runs for every process of the machine. These programs act only
//! in this node's network namespace, so agents in several namespaces of one machine attach theirs
//! side by side.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use podwire_common::names::programs;

use super::attach::{Attaching, missing};
use super::error::DataplaneError;
use super::{Dataplane, pins};
use crate::files::FileError;

impl Dataplane {
    /// Attaches the programs that direct this node's own processes to pods behind hostPorts and, if
    /// it `has_services`, to backends of services. Replaces the programs that are there.
    ///
    /// # Errors
    /// [`DataplaneError::Attach`], [`DataplaneError::File`].
    pub fn attach_host_processes(&mut self, cgroup: &Path, has_services: bool) -> Result<(), DataplaneError> {
        let folder = File::open(cgroup).map_err(FileError::of("open the cgroup", cgroup))?;
        let id = folder.metadata().map_err(FileError::of("look up the cgroup", cgroup))?.ino();
        let place = pins::cgroup(id);
        let wanted = programs::at_cgroup(has_services);
        for program in wanted {
            self.attach_to_cgroup(program, cgroup, &folder, &place)?;
        }
        // Links that an agent with other options has pinned.
        let concerned = |pin: &Path| pins::is_link_of(pin, &programs::CGROUP);
        let why = "the agent's options have changed (--cgroup-dir, --services)";
        self.detach_others(concerned, wanted, &[&place], why)
    }

    fn attach_to_cgroup(
        &mut self,
        name: &'static str,
        cgroup: &Path,
        folder: &File,
        place: &str,
    ) -> Result<(), DataplaneError> {
        let shown = cgroup.display().to_string();
        let attaching = Attaching { program: name, interface: &shown };
        let pin = self.bpf_dir.as_ref().map(|folder| pins::link(folder, name, place));
        if self.take_over(name, pin.as_deref())? {
            return Ok(());
        }
        // A link attachment always allows several programs, as BPF_F_ALLOW_MULTI does. The kernel
        // refuses a link attachment that sets this flag.
        let mode = CgroupAttachMode::Single;
        let failed = |source: ProgramError| attaching.failed(source);
        let link = match self.ebpf.program_mut(name).ok_or_else(|| missing(name))? {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(folder, mode).map_err(failed)?;
                FdLink::try_from(program.take_link(id).map_err(failed)?)
            }
            Program::CgroupSock(program) => {
                let id = program.attach(folder, mode).map_err(failed)?;
                FdLink::try_from(program.take_link(id).map_err(failed)?)
            }
            _ => return Err(failed(ProgramError::UnexpectedProgramType)),
        };
        let link = link.map_err(|source| attaching.failed(source))?;
        self.keep(link, pin.as_deref(), &attaching)
    }
}
