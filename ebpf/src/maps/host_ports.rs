//! hostPorts, and the sockets that were redirected to pods behind them: `FRONTENDS`,
//! `REDIRECTED_SOCKETS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{Backend, Frontend, RedirectedSocket, SocketAddress};
use podwire_common::addr::{Addr, Be16};

use super::{FRONTENDS, REDIRECTED_SOCKETS};

/// Returns the backend of an address and port. Its hostIP is this address, or `any`, the one that
/// stands for all addresses of the family. The function does not check whether the address is this
/// node's own: see [`is_own_address`](super::is_own_address).
#[inline(always)]
pub fn backend(address: &Addr, any: &Addr, port: Be16, protocol: u8) -> Option<&'static Backend> {
    let mut frontend = Frontend { address: *address, port, protocol, reserved: 0 };
    // SAFETY: a map element; see `endpoint`.
    if let Some(backend) = unsafe { FRONTENDS.get(frontend) } {
        return Some(backend);
    }
    frontend.address = *any;
    // SAFETY: a map element; see `endpoint`.
    unsafe { FRONTENDS.get(frontend) }
}

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
