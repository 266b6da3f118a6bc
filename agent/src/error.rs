//! What can go wrong at the edges. Each names the operation, the object and, where there is one, the way out.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
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
    /// A folder that another tool has made for a user of its own.
    #[error("{operation} {}: permission denied: {} belongs to user {owner}, and root without the capability DAC_OVERRIDE may not write there: run `chown root:root {}` on the node, or add the capability", path.display(), folder.display(), folder.display())]
    FolderOfAnother {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The folder that it is in, or is.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The runtime's plugins are elsewhere.
    #[error("the folder of plugins {} does not exist: create it, or name the one that the runtime has with --cni-bin-dir", path.display())]
    NoPluginFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A second agent on one folder or socket.
    #[error("{name} {} is in use by another agent, or by `podwire uninstall` (process {pid}, by the number that it has in its own container): end that one, or give this one another {option}", path.display())]
    Locked {
        /// What is held.
        name: &'static str,
        /// The option by which an agent is given another one.
        option: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Who holds it, if that is known.
        pid: String,
    },
    /// A state folder whose pods are elsewhere.
    #[error("the pods of the state folder {} are in another network namespace of this machine, where their agent has run since the last boot: run this one there (hostNetwork: true), or give it another --state-dir and --bpf-dir; nothing was touched. If that namespace is gone, and its pods with it, remove {}", path.display(), file.display())]
    AnotherNamespace {
        /// The folder.
        path: PathBuf,
        /// What tells of the namespace.
        file: PathBuf,
    },
    /// An agent that is in the way.
    #[error("an agent runs on this node and uses {}: stop it first, and whatever would start it again; nothing was touched", path.display())]
    AgentRuns {
        /// The state folder or the socket.
        path: PathBuf,
    },
    /// A socket that somebody serves who does not hold its lock.
    #[error("another program serves {}: stop that one, or give this one another --socket", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// A folder without a name, in which nothing can be made: it was removed where it was mounted from.
    #[error("{} is the mount of a folder that was removed: mount one that is there; a runtime does so when the container starts anew", path.display())]
    RemovedFolder {
        /// The folder.
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
    /// The kernel does not tell what the programs need to know.
    #[error("find out from {} where the kernel's struct sk_buff has a checksum that a sender leaves to it: {problem}: without that, pods can forge their sources, and Podwire does not start; it needs a kernel with CONFIG_DEBUG_INFO_BTF, and /sys of that kernel", path.display())]
    SkbLayout {
        /// The kernel's types.
        path: PathBuf,
        /// What they lack.
        problem: String,
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
    /// The pinned maps are of an earlier layout, and this release does not know one of them.
    #[error("the maps under {} have layout version {found}, and this agent cannot convert its {table}: start the release that made them, or drain the node and remove the folder", path.display())]
    NoConversion {
        /// The folder of pins.
        path: PathBuf,
        /// What is there.
        found: u32,
        /// The map.
        table: &'static str,
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

    /// Of something in a folder that other tools use as well: whose it is, if that is why.
    pub(crate) fn in_shared(folder: &Path) -> impl FnOnce(Self) -> Self {
        move |error| match (error, fs::metadata(folder).map(|folder| folder.uid())) {
            (Self::File { operation, path, source }, Ok(owner))
                if source.raw_os_error() == Some(libc::EACCES) && owner != geteuid().as_raw() =>
            {
                Self::FolderOfAnother { operation, path, folder: folder.into(), owner }
            }
            (other, _) => other,
        }
    }
}

/// A removal that found nothing to remove has succeeded.
pub(crate) fn absent_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
