//! hostPorts, and the sockets that were pointed at pods behind them: `FRONTENDS`, `REDIRECTED_SOCKETS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{Backend, Frontend, RedirectedSocket, SocketAddress};
use podwire_common::addr::{Addr, Be16};

use super::{FRONTENDS, REDIRECTED_SOCKETS};

/// Who answers at an address and port: by a hostIP that is this address, or one that stands for all. Whether the address is this
/// node's is another question ([`is_own_address`]).
#[inline(always)]
pub fn backend(address: &Addr, port: Be16, protocol: u8) -> Option<Backend> {
    let mut frontend = Frontend { address: *address, port, protocol, reserved: 0 };
    // SAFETY: as for endpoints.
    if let Some(backend) = unsafe { FRONTENDS.get(frontend) } {
        return Some(*backend);
    }
    frontend.address = Addr::UNSPECIFIED;
    // SAFETY: as for endpoints.
    unsafe { FRONTENDS.get(frontend) }.copied()
}

/// Where a process believes that a socket sends which was pointed at a pod.
#[inline(always)]
pub fn redirected_socket(socket: &RedirectedSocket) -> Option<SocketAddress> {
    // SAFETY: as for endpoints; an element that is reused meanwhile misleads one answer, as an eviction would.
    unsafe { REDIRECTED_SOCKETS.get(socket) }.copied()
}

/// Remembers where a process believes that a socket sends.
///
/// # Errors
/// The helper's: memory is short.
#[inline(always)]
pub fn remember_redirected_socket(socket: &RedirectedSocket, address: &SocketAddress) -> Result<(), i32> {
    REDIRECTED_SOCKETS.insert(socket, address, BPF_ANY.into())
}

/// Forgets what a process believed that a socket sends to, if anything is remembered.
#[inline(always)]
pub fn forget_redirected_socket(socket: &RedirectedSocket) {
    // A lookup takes no lock, and nearly all find nothing.
    if redirected_socket(socket).is_some() {
        let _ = REDIRECTED_SOCKETS.remove(socket);
    }
}
