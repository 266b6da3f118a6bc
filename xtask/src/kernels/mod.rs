//! Debian's kernels, in a virtual machine with a processor that QEMU emulates. Test programs run
//! there unchanged, with the libraries that they are linked with on this machine.

mod debian;
mod guest;
mod initramfs;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

pub(crate) use guest::{Guest, Report};

use crate::packages;

/// A kernel on which the programs have to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's kernel, the oldest that Podwire supports.
    #[value(name = "6.1")]
    Linux6_1,
    /// Debian 13's kernel.
    #[value(name = "6.12")]
    Linux6_12,
}

/// The files of a kernel, on this machine.
pub(crate) struct Files {
    /// The kernel image that QEMU boots.
    image: PathBuf,
    /// The folder `kernel` in the folder of the kernel's modules.
    modules: PathBuf,
}

impl Kernel {
    /// All kernels.
    pub(crate) const ALL: [Self; 2] = [Self::Linux6_1, Self::Linux6_12];

    /// Installs QEMU and fetches the kernel, if they are missing.
    ///
    /// # Errors
    /// When something is missing and apt cannot install or fetch it.
    pub(crate) fn fetch(self) -> Result<Files> {
        packages::ensure(&packages::EMULATION)?;
        debian::fetch(self)
    }

    /// Returns major and minor version.
    const fn version(self) -> &'static str {
        match self {
            Self::Linux6_1 => "6.1",
            Self::Linux6_12 => "6.12",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}
