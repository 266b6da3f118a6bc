//! Socket options that no library reads safely. This is the agent's only `getsockopt`.

#![expect(unsafe_code, reason = "a system call that takes a pointer and a length")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Reads a socket option into a buffer, and returns the number of bytes that the kernel wrote. For
/// some options the kernel first reads the buffer, which then contains the query.
///
/// # Errors
/// The kernel's error, or `InvalidInput` if the buffer is too large.
pub fn get(socket: BorrowedFd<'_>, level: i32, option: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the buffer is too large"))?;
    // SAFETY: the descriptor is open for as long as it is borrowed. The pointer and the length
    // describe one live, writable slice. The kernel writes no more than the length, and any bytes
    // are a valid `[u8]`. `length` is a live local.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, buffer.as_mut_ptr().cast(), &raw mut length)
    };
    if outcome == 0 { Ok(length as usize) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd as _;

    #[test]
    fn an_option_is_read_and_its_length_told() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut buffer = [0; 8];
        let length = get(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE, &mut buffer).unwrap();
        assert_eq!((length, i32::from_ne_bytes(buffer[..4].try_into().unwrap())), (4, libc::SOCK_DGRAM));
    }

    #[test]
    fn the_kernels_refusal_is_told() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = get(socket.as_fd(), libc::SOL_SOCKET, -1, &mut [0; 8]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT));
    }
}
