//! Other kernels than this machine's: Debian's, in a virtual machine whose processor QEMU emulates. A test program runs there as
//! it is, with the libraries that it is linked with here.

mod debian;
mod guest;
mod initramfs;

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;

pub(crate) use guest::{Guest, Report};

use crate::packages;

/// A kernel that the programs have to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's: the oldest that Podwire promises to run on.
    #[value(name = "6.1")]
    Linux6_1,
    /// Debian 13's.
    #[value(name = "6.12")]
    Linux6_12,
}

/// A kernel's files, here.
pub(crate) struct Files {
    /// What QEMU starts.
    image: PathBuf,
    /// `kernel` of its modules' folder.
    modules: PathBuf,
}

impl Kernel {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Linux6_1, Self::Linux6_12];

    /// Sees to it that QEMU and the kernel are here.
    ///
    /// # Errors
    /// When something is missing and apt cannot bring it.
    pub(crate) fn fetch(self) -> Result<Files> {
        packages::ensure(&packages::EMULATION)?;
        debian::fetch(self)
    }

    /// Major and minor version.
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
