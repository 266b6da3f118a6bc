//! The pod's network namespace.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};

use podwire_cni::protocol::codes;
use rustix::fs::{OFlags, fstatfs};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::CniError;
use crate::netlink::{Netlink, NetlinkError};

/// The namespace in which the process started: the node's.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` (include/uapi/linux/magic.h): the file system of namespaces.
const NAMESPACES: u64 = 0x6e73_6673;

/// An open network namespace that is not the node's own.
pub(crate) struct Netns {
    path: String,
    file: File,
    own: File,
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("CNI_NETNS {path}: open the network namespace: {source}")]
    Open { path: String, source: io::Error },
    #[error(
        "CNI_NETNS {path} is {found}, not a network namespace: a runtime names one such as /run/netns/NAME"
    )]
    Foreign { path: String, found: &'static str },
    #[error(
        "CNI_NETNS {path} is the node's own network namespace: a pod on the host's network needs no plugin"
    )]
    Own { path: String },
    #[error("CNI_NETNS {path}: enter the network namespace: {source}")]
    Enter { path: String, source: io::Error },
    #[error("return to the node's network namespace: {source}")]
    Return { source: io::Error },
    #[error("CNI_NETNS {path}: {source}")]
    Netlink { path: String, source: NetlinkError },
}

impl From<NetnsError> for CniError {
    fn from(error: NetnsError) -> Self {
        let code = match error {
            NetnsError::Open { .. }
            | NetnsError::Foreign { .. }
            | NetnsError::Own { .. }
            | NetnsError::Enter { .. } => codes::INVALID_ENVIRONMENT,
            NetnsError::Return { .. } | NetnsError::Netlink { .. } => codes::NETLINK_FAILURE,
        };
        CniError::new(code, error.to_string())
    }
}

impl Netns {
    pub(crate) fn open(path: &str) -> Result<Self, NetnsError> {
        let failed = |path: &str, source| NetnsError::Open { path: path.to_owned(), source };
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let foreign = |found| NetnsError::Foreign { path: path.to_owned(), found };
        let kind = fs::metadata(path).map_err(|error| failed(path, error))?.file_type();
        if !kind.is_file() {
            return Err(foreign(name_of(kind)));
        }
        // The path may have become a FIFO since the check. With this flag, opening it does not wait
        // for a writer.
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path);
        let file = file.map_err(|error| failed(path, error))?;
        let system = fstatfs(&file).map_err(|error| failed(path, error.into()))?;
        // The field's type depends on the architecture; the magic number fits in 32 bits.
        if system.f_type as u64 & 0xffff_ffff != NAMESPACES {
            return Err(foreign("a file"));
        }
        let own = File::open(OWN).map_err(|error| failed(OWN, error))?;
        let theirs = identity(&file).map_err(|error| failed(path, error))?;
        if theirs == identity(&own).map_err(|error| failed(OWN, error))? {
            return Err(NetnsError::Own { path: path.to_owned() });
        }
        Ok(Netns { path: path.to_owned(), file, own })
    }

    /// Opens a netlink socket inside the namespace.
    pub(crate) fn netlink(&self) -> Result<Netlink, NetnsError> {
        self.inside(Netlink::open)?.map_err(|source| NetnsError::Netlink { path: self.path.clone(), source })
    }

    /// Runs a function inside the namespace, and returns to the node's. The process has one thread,
    /// so nothing else runs inside.
    pub(crate) fn inside<T>(&self, run: impl FnOnce() -> T) -> Result<T, NetnsError> {
        enter(&self.file).map_err(|source| NetnsError::Enter { path: self.path.clone(), source })?;
        let result = run();
        enter(&self.own).map_err(|source| NetnsError::Return { source })?;
        Ok(result)
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_namespace_is_refused() {
        let error = Netns::open(OWN).err().unwrap();
        assert!(error.to_string().contains("the node's own"), "{error}");
        assert_eq!(CniError::from(error).code, codes::INVALID_ENVIRONMENT);
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let error = Netns::open("/var/run/netns/no-such-namespace").err().unwrap();
        assert!(error.to_string().starts_with("CNI_NETNS /var/run/netns/no-such-namespace"), "{error}");
    }
}
