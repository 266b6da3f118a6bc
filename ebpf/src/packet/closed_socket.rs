//! The socket that a cgroup program sees when a process closes it.

use aya_ebpf::programs::SockContext;

use super::socket_call::protocol_of;
use crate::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};

/// A socket of any protocol that its last process has closed.
pub struct ClosedSocket(pub SockContext);

impl ClosedSocket {
    /// Returns the socket's IP protocol number if it is TCP or UDP.
    #[inline(always)]
    pub fn protocol(&self) -> Option<u8> {
        // SAFETY: the context is valid.
        let (kind, number) = unsafe { ((*self.0.sock).type_, (*self.0.sock).protocol) };
        protocol_of(kind, number)
    }

    /// Returns the kernel's number of the socket.
    #[inline(always)]
    pub fn cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.0.sock.cast()) }
    }

    /// Returns the kernel's number of the socket's network namespace.
    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.0.sock.cast()) }
    }
}
