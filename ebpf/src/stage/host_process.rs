//! This node's own processes reach a pod behind a hostPort by any address of the node: their sockets are pointed at the pod when
//! they say where to, and they are told of the address that they asked for. Not one packet is translated.
//!
//! The programs run for every process of the machine, and those of other network namespaces are none of this node's: a pod's
//! 127.0.0.1 is its own. Nothing is ever refused here.

use podwire_common::{
    abi::{Backend, RedirectedSocket, SocketAddress},
    addr::{Addr, Be16},
};

use crate::{
    maps,
    packet::{SocketCall, is_loopback},
};

/// The address that Linux takes 0.0.0.0 for as a destination.
const LOOPBACK: Addr = Addr::from_v4([127, 0, 0, 1]);

/// A process says where its socket is to connect.
#[inline(always)]
pub fn connect(call: &impl SocketCall) {
    if is_of_this_node(call) {
        point_at_pod(call);
    }
}

/// A process says where its socket is to send one datagram.
#[inline(always)]
pub fn send(call: &impl SocketCall) {
    // With a connected IPv6 socket the kernel comes here by itself, with the address that the socket was pointed at.
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
    // The kernel lets no packet from 127.0.0.0/8 out by another link than loopback: the call would fail (EINVAL).
    let backend = if call.is_bound_to_loopback() { None } else { backend_of(&asked, protocol) };
    match backend {
        Some(backend) => {
            let socket = redirected(call, backend.address, backend.port);
            if maps::redirected_socket(&socket).is_none_or(|known| known != asked) {
                // What is lost with an entry is what the process is told, not the connection.
                let _ = maps::remember_redirected_socket(&socket, &asked);
            }
            call.set_address(&backend.address);
            call.set_port(backend.port);
        }
        // The socket may have been pointed there before, and now the process means the pod itself.
        None => maps::forget_redirected_socket(&redirected(call, asked.address, asked.port)),
    }
}

/// A process is told where a datagram comes from, or whom its socket is connected with.
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
    }
    SocketAddress { address, port: call.port(), reserved: [0; 2] }
}

#[inline(always)]
fn redirected(call: &impl SocketCall, address: Addr, port: Be16) -> RedirectedSocket {
    RedirectedSocket { cookie: call.socket_cookie(), address, port, reserved: [0; 6] }
}

/// As for packets, only behind an address of this node: a hostIP may be anybody's.
#[inline(always)]
fn backend_of(asked: &SocketAddress, protocol: u8) -> Option<Backend> {
    let backend = maps::backend(&asked.address, asked.port, protocol)?;
    (is_loopback(&asked.address) || maps::is_own_address(&asked.address)).then_some(backend)
}
