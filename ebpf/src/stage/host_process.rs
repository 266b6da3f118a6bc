//! hostPorts for this node's own processes, by any address of the node. When a process names a
//! destination, the program redirects its socket to the pod. When the process asks for the peer, it
//! gets the address that it named. No packet is translated.
//!
//! The programs run for every process of the machine, but act only in this node's network
//! namespace: a pod's 127.0.0.1 is its own. They never refuse a call.

use podwire_common::{
    abi::{Backend, RedirectedSocket, SocketAddress},
    addr::{Addr, Be16},
};

use crate::{
    maps,
    packet::{LOOPBACK6, SocketCall, is_loopback},
};

/// The address that Linux uses for the destination 0.0.0.0. For `::` it uses [`LOOPBACK6`].
const LOOPBACK: Addr = Addr::from_v4([127, 0, 0, 1]);

/// Handles the address to which a process connects its socket.
#[inline(always)]
pub fn connect(call: &impl SocketCall) {
    if is_of_this_node(call) {
        point_at_pod(call);
    }
}

/// Handles the address to which a process sends one datagram.
#[inline(always)]
pub fn send(call: &impl SocketCall) {
    // With a connected IPv6 socket that has a v4-mapped peer, the kernel itself calls this program,
    // with the address to which the socket was redirected.
    if is_of_this_node(call) && !call.is_connected_with(&call.address(), call.port()) {
        point_at_pod(call);
    }
}

#[inline(always)]
fn point_at_pod(call: &impl SocketCall) {
    let Some(protocol) = call.protocol() else {
        return;
    };
    let asked = asked_for(call);
    // The kernel sends packets from 127.0.0.0/8 only by the loopback link, so a redirected call
    // would fail (EINVAL). Receivers drop packets from ::1.
    let backend = if is_loopback(&call.bound_address()) { None } else { backend_of(&asked, protocol) };
    match backend {
        Some(backend) => {
            let socket = redirected(call, backend.address, backend.port);
            if maps::redirected_socket(&socket).is_none_or(|known| known != asked) {
                // If the entry is lost, the process sees the pod's address, but the connection
                // works.
                let _ = maps::remember_redirected_socket(&socket, &asked);
            }
            call.set_address(&backend.address);
            call.set_port(backend.port);
        }
        // The socket may have been redirected to this address before. Now the process means the pod
        // itself.
        None => maps::forget_redirected_socket(&redirected(call, asked.address, asked.port)),
    }
}

/// Shows a process the address that it asked for, as the source of a datagram or as the peer of its
/// socket.
#[inline(always)]
pub fn show(call: &impl SocketCall) {
    if !is_of_this_node(call) || call.protocol().is_none() {
        return;
    }
    if let Some(asked) = maps::redirected_socket(&redirected(call, call.address(), call.port())) {
        call.set_address(&asked.address);
        call.set_port(asked.port);
    }
}

#[inline(always)]
fn is_of_this_node(call: &impl SocketCall) -> bool {
    let own = maps::netns_cookie();
    own != 0 && call.netns_cookie() == own
}

#[inline(always)]
fn asked_for(call: &impl SocketCall) -> SocketAddress {
    let mut address = call.address();
    if address == Addr::from_v4([0; 4]) {
        address = LOOPBACK;
    } else if address == Addr::UNSPECIFIED {
        // To a socket that is bound to a v4-mapped address, `::` means 127.0.0.1.
        address = if call.bound_address().is_v4() { LOOPBACK } else { LOOPBACK6 };
    }
    SocketAddress { address, port: call.port(), reserved: [0; 2] }
}

#[inline(always)]
fn redirected(call: &impl SocketCall, address: Addr, port: Be16) -> RedirectedSocket {
    RedirectedSocket { cookie: call.socket_cookie(), address, port, reserved: [0; 6] }
}

/// Returns the backend of an address of this node, loopback addresses included. As for packets, other
/// addresses do not count, because a hostIP may be any address.
#[inline(always)]
fn backend_of(asked: &SocketAddress, protocol: u8) -> Option<&'static Backend> {
    // The socket reaches no address of the other family than that which it names.
    let any = if asked.address.is_v4() { Addr::from_v4([0; 4]) } else { Addr::UNSPECIFIED };
    let backend = maps::backend(&asked.address, &any, asked.port, protocol)?;
    (is_loopback(&asked.address) || maps::is_own_address(&asked.address)).then_some(backend)
}
