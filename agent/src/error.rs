//! What can go wrong at the edges. Each names the operation, the object and, where there is one, the way out.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// An error of the kernel's or the disk's.
#[derive(Debug, Error)]
pub enum Error {
    /// A file or folder.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The runtime's plugins are elsewhere.
    #[error("the folder of plugins {} does not exist: create it, or name the one that the runtime has with --cni-bin-dir", path.display())]
    NoPluginFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A second agent on one state folder.
    #[error("the state folder {} belongs to a running agent (process {pid}): stop that one, or give this one another --state-dir", path.display())]
    StateLocked {
        /// The folder.
        path: PathBuf,
        /// What the lock file says.
        pid: String,
    },
    /// An agent that is in the way.
    #[error("an agent (process {pid}) serves {}: stop it first, and whatever would start it again", path.display())]
    AgentRuns {
        /// The socket.
        path: PathBuf,
        /// Its process, as the kernel knows it.
        pid: String,
    },
    /// A second agent on one socket.
    #[error("another agent serves {}: stop that one, or give this one another --socket", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A request to the kernel's routing socket.
    #[error("{operation}: {source}")]
    Netlink {
        /// What was tried, on what.
        operation: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A device that has to be there is not.
    #[error("device {name} does not exist")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// Something about the device is not as it has to be.
    #[error("device {name}: {problem}")]
    Device {
        /// Its name.
        name: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The object or one of its programs is refused.
    #[error("load {object}: {source}")]
    Load {
        /// The program, or the object as a whole.
        object: String,
        /// The kernel's or the loader's answer, the verifier's log included.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A switch of the kernel's in a folder where it can only be read.
    #[error("write {}: read-only, as in a container: mount the node's /proc/sys/net writable, at /host/proc/sys/net for example, and say so with --sysctl-dir /host/proc/sys", path.display())]
    ReadOnlySwitch {
        /// The switch.
        path: PathBuf,
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
    /// An entry of a map.
    #[error("{operation} {map}: {source}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: aya::maps::MapError,
    },
    /// The pinned maps are another release's.
    #[error("the maps under {} have layout version {found}, this agent knows {expected}: start the release that made them, or drain the node and remove the folder", path.display())]
    Schema {
        /// The folder of pins.
        path: PathBuf,
        /// What is there.
        found: String,
        /// What this agent knows.
        expected: u32,
    },
    /// A later release wrote the state.
    #[error("{} has format {found}, this agent knows up to {expected}: start the release that wrote it; nothing was touched", path.display())]
    StateFormat {
        /// An endpoint's file.
        path: PathBuf,
        /// What is there.
        found: u32,
        /// The latest that this agent knows.
        expected: u32,
    },
    /// Not a BPF file system.
    #[error("{} is not on a BPF file system: run `mount -t bpf bpf /sys/fs/bpf` on the node, or name a folder that is with --bpf-dir", path.display())]
    NotBpfFileSystem {
        /// The folder of pins.
        path: PathBuf,
    },
}

impl Error {
    /// For `map_err` on file operations.
    pub fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }
}

/// A removal that found nothing to remove has succeeded.
pub(crate) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
