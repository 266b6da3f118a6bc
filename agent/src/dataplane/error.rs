//! What can go wrong with programs, maps and their pins.

use std::path::PathBuf;

use aya::maps::MapError;
use podwire_cni::protocol::codes;
use thiserror::Error;

use crate::files::FileError;
use crate::lock::ClaimError;

/// A failed operation on programs, maps or pins, and its object.
#[derive(Debug, Error)]
pub enum DataplaneError {
    /// The kernel or the loader refused the object or one of its programs.
    #[error("load {object}: {source}")]
    Load {
        /// The program, or the object as a whole.
        object: String,
        /// The kernel's or the loader's answer, the verifier's log included.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel does not provide the layout that the programs need.
    #[error("cannot find in {} the fields of the kernel's struct sk_buff that the programs read: {problem}. Without these fields pods could forge their source addresses, so the agent does not start. Run a kernel with CONFIG_DEBUG_INFO_BTF, and mount the /sys of that kernel", path.display())]
    SkbLayout {
        /// The kernel's types.
        path: PathBuf,
        /// The problem with them.
        problem: String,
    },
    /// A program cannot be attached.
    #[error("attach {program} to {interface}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        interface: String,
        /// The kernel's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An operation on an entry of a map failed.
    #[error("{operation} {map}: {source}")]
    Map {
        /// The operation.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// Another release made the pinned maps.
    #[error("the maps under {} have layout version {found}, this agent knows {expected}: start the release that made them, or drain the node and remove the folder", path.display())]
    Schema {
        /// The folder of pins.
        path: PathBuf,
        /// The layout of the pins.
        found: String,
        /// The layout of this agent.
        expected: u32,
    },
    /// The pinned maps have an earlier layout, and this release cannot convert one of them.
    #[error("the maps under {} have layout version {found}, and this agent cannot convert its {table}: start the release that made them, or drain the node and remove the folder", path.display())]
    NoConversion {
        /// The folder of pins.
        path: PathBuf,
        /// The layout of the pins.
        found: u32,
        /// The map without a conversion.
        table: &'static str,
    },
    /// The folder is not on a BPF file system.
    #[error("{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf` on the node, or set --bpf-dir to a folder on a BPF file system", path.display())]
    NotBpfFileSystem {
        /// The folder of pins.
        path: PathBuf,
    },
    /// Another process uses the folder of pins.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// An operation on a pin or on a folder of pins failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl DataplaneError {
    /// Wraps an error of aya about a program, or about the object as a whole. For `map_err`.
    pub(super) fn load<E>(object: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let object = object.into();
        move |source| Self::Load { object, source: source.into() }
    }

    /// Returns the CNI error code that the plugin gets for this error.
    pub(crate) fn cni_code(&self) -> u32 {
        match self {
            Self::File(_) => FileError::CNI_CODE,
            _ => codes::AGENT_FAILURE,
        }
    }
}
