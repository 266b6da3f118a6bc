//! The error type for code that uses several domains: files, locks, state, switches, links,
//! programs. Each error names the operation, the object and, if there is one, the remedy.

use podwire_cni::protocol::codes;
use thiserror::Error;

use crate::dataplane::DataplaneError;
use crate::files::FileError;
use crate::links::LinkError;
use crate::lock::ClaimError;
use crate::store::StateError;
use crate::sysctl::SwitchError;

/// An error from the kernel or the disk.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder or socket that this process may not use.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// A kernel switch.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// Devices, addresses, routes, queues, filters.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Programs, maps, pins.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
}

impl Error {
    /// Returns the CNI error code for the plugin, which the error's domain chooses.
    pub(crate) fn cni_code(&self) -> u32 {
        match self {
            Self::File(_) => FileError::CNI_CODE,
            Self::Claim(_) => codes::AGENT_FAILURE,
            Self::State(_) => StateError::CNI_CODE,
            Self::Switch(_) => SwitchError::CNI_CODE,
            Self::Link(_) => LinkError::CNI_CODE,
            Self::Dataplane(error) => error.cni_code(),
        }
    }
}
