//! Sockets of this node's own processes that were redirected: `REDIRECTED_SOCKETS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{
    Backend, RedirectedSocket, SOCKET_ASKED, SOCKET_BEFORE, SOCKET_CHOSEN, SocketAddress,
};
use podwire_common::addr::{Addr, Be16};

use super::{REDIRECTED_SOCKETS, has_services};

/// The most backends that a closed socket is searched for. The kernel evicts the entries of others
/// when it needs their room.
const BACKENDS_OF_SOCKET: u32 = 32;

/// Returns the address that a process asked for, if its socket was redirected to a backend.
#[inline(always)]
pub fn redirected_socket(socket: &RedirectedSocket) -> Option<SocketAddress> {
    // SAFETY: a map element; see `endpoint`. A reused LRU element makes one answer wrong, as an
    // eviction does.
    unsafe { REDIRECTED_SOCKETS.get(socket) }.copied()
}

/// Remembers the address that a process asked for, for its redirected socket. If memory is short,
/// the process sees the backend's address, but the connection works.
// Not inlined: keys and values would take stack in the caller.
#[inline(never)]
pub fn remember_redirected_socket(socket: &RedirectedSocket, asked: &SocketAddress) {
    let _ = REDIRECTED_SOCKETS.insert(socket, asked, BPF_ANY.into());
    if has_services() {
        list(socket);
    }
}

/// Adds a backend to the list of those that the socket was redirected to. Two threads that add to
/// one list at the same time may lose one backend, whose entries the kernel evicts later.
#[inline(always)]
fn list(socket: &RedirectedSocket) {
    let first = beginning(socket.cookie);
    if let Some(last) = redirected_socket(&first) {
        let before = RedirectedSocket { kind: SOCKET_BEFORE, ..*socket };
        let is_first = last.address == socket.address && last.port == socket.port;
        if is_first || redirected_socket(&before).is_some() {
            return;
        }
        let _ = REDIRECTED_SOCKETS.insert(before, last, BPF_ANY.into());
    }
    let backend = SocketAddress { address: socket.address, port: socket.port, reserved: [0; 2] };
    let _ = REDIRECTED_SOCKETS.insert(first, backend, BPF_ANY.into());
}

/// Forgets the address that a process asked for, if one is remembered.
#[inline(always)]
pub fn forget_redirected_socket(socket: &RedirectedSocket) {
    // Look up first: a lookup takes no lock, and nearly all lookups find nothing.
    if redirected_socket(socket).is_some() {
        let _ = REDIRECTED_SOCKETS.remove(socket);
    }
}

/// Forgets all that is remembered of a closed socket.
#[inline(always)]
pub fn forget_closed_socket(cookie: u64) {
    let mut at = beginning(cookie);
    for _ in 0..BACKENDS_OF_SOCKET {
        let Some(backend) = redirected_socket(&at) else {
            return;
        };
        let _ = REDIRECTED_SOCKETS.remove(at);
        at.address = backend.address;
        at.port = backend.port;
        at.kind = SOCKET_ASKED;
        if let Some(asked) = redirected_socket(&at) {
            let _ = REDIRECTED_SOCKETS.remove(at);
            let _ = REDIRECTED_SOCKETS.remove(choice(cookie, &asked));
        }
        at.kind = SOCKET_BEFORE;
    }
}

/// Returns the backend that a UDP socket keeps for a service with session affinity.
#[inline(always)]
pub fn kept_backend_of_socket(cookie: u64, asked: &SocketAddress) -> Option<SocketAddress> {
    redirected_socket(&choice(cookie, asked))
}

/// Makes a UDP socket keep a backend of a service with session affinity.
#[inline(always)]
pub fn keep_backend_of_socket(cookie: u64, asked: &SocketAddress, backend: &Backend) {
    let kept = SocketAddress { address: backend.address, port: backend.port, reserved: [0; 2] };
    let _ = REDIRECTED_SOCKETS.insert(choice(cookie, asked), kept, BPF_ANY.into());
}

/// Returns the key of the backend that a socket keeps.
#[inline(always)]
fn choice(cookie: u64, asked: &SocketAddress) -> RedirectedSocket {
    RedirectedSocket {
        cookie,
        address: asked.address,
        port: asked.port,
        kind: SOCKET_CHOSEN,
        reserved: [0; 5],
    }
}

/// Returns the key at which the list of a socket's backends begins.
#[inline(always)]
fn beginning(cookie: u64) -> RedirectedSocket {
    let (address, port) = (Addr::UNSPECIFIED, Be16::ZERO);
    RedirectedSocket { cookie, address, port, kind: SOCKET_BEFORE, reserved: [0; 5] }
}
