//! Sockets of this node's own processes that were redirected: `REDIRECTED_SOCKETS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{RedirectedSocket, SocketAddress};

use super::REDIRECTED_SOCKETS;

/// Returns the address that a process asked for, if its socket was redirected to a pod.
#[inline(always)]
pub fn redirected_socket(socket: &RedirectedSocket) -> Option<SocketAddress> {
    // SAFETY: a map element; see `endpoint`. A reused LRU element makes one answer wrong, as an
    // eviction does.
    unsafe { REDIRECTED_SOCKETS.get(socket) }.copied()
}

/// Remembers the address that a process asked for, for its redirected socket.
///
/// # Errors
/// The helper's error code: memory is short.
#[inline(always)]
pub fn remember_redirected_socket(socket: &RedirectedSocket, address: &SocketAddress) -> Result<(), i32> {
    REDIRECTED_SOCKETS.insert(socket, address, BPF_ANY.into())
}

/// Forgets the address that a process asked for, if one is remembered.
#[inline(always)]
pub fn forget_redirected_socket(socket: &RedirectedSocket) {
    // Look up first: a lookup takes no lock, and nearly all lookups find nothing.
    if redirected_socket(socket).is_some() {
        let _ = REDIRECTED_SOCKETS.remove(socket);
    }
}
