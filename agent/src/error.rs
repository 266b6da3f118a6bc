//! What can go wrong where several domains meet: an error of one of them. Each names the operation, the object and, where there is one,
//! the way out.

use podwire_cni::protocol::codes;
use thiserror::Error;

use crate::dataplane::DataplaneError;
use crate::files::FileError;
use crate::links::LinkError;
use crate::lock::ClaimError;
use crate::store::StateError;
use crate::sysctl::SwitchError;

/// An error of the kernel's or the disk's.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder or socket that somebody else uses.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// A switch of the kernel's.
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
    /// What a plugin is told with it: the choice of its domain.
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
