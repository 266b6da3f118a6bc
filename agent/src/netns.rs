//! The agent's network namespace, and the numbers that identify it.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use crate::files::FileError;
use crate::sockopt;

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, Linux 5.14).
const SO_NETNS_COOKIE: i32 = 71;

/// The kernel's file for this thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Returns the inode number of this thread's network namespace. Two namespaces that exist at the
/// same time have different ones. A namespace that is gone may have had the same one.
///
/// # Errors
/// [`FileError::Io`].
pub fn inode() -> Result<u64, FileError> {
    Ok(fs::metadata(OWN).map_err(FileError::of("look up", OWN))?.ino())
}

/// Returns the kernel's cookie of this thread's network namespace. It is never 0, and no other
/// namespace gets it while the system runs.
///
/// # Errors
/// The kernel's error. Before Linux 5.14 it has no such socket option.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut cookie = [0; size_of::<u64>()];
    let length = sockopt::get(socket.as_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    if length != cookie.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{length} bytes instead of 8")));
    }
    Ok(u64::from_ne_bytes(cookie))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_number() {
        let cookie = cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(super::cookie().unwrap(), cookie);
    }
}
