//! hostPorts and services for this node's own processes. When a process names a destination, the
//! program redirects its socket to a pod or another backend. When the process asks for the peer, it
//! gets the address that it named. No packet is translated.
//!
//! The programs run for every process of the machine, but act only in this node's network
//! namespace: a pod's 127.0.0.1 is its own. They refuse only calls to services without an endpoint,
//! and to addresses and ports of services' networks that no service has.

use podwire_common::{
    abi::{
        Backend, CLIENTS_INSIDE, RedirectedSocket, SERVICE_NOT_FOR_PROCESSES, SOCKET_ASKED, Service,
        SocketAddress,
    },
    addr::{Addr, Be16},
    flow::protocol,
    nat,
    reason::{Drop, Path},
};

use super::service_network;
use crate::{
    maps,
    packet::{ClosedSocket, LOOPBACK6, SocketCall, is_loopback},
};

/// The address that Linux uses for the destination 0.0.0.0. For `::` it uses [`LOOPBACK6`].
const LOOPBACK: Addr = Addr::from_v4([127, 0, 0, 1]);

/// Handles the address to which a process connects its socket.
///
/// # Errors
/// [`Drop::NoBackend`], [`Drop::NoLocalBackend`], [`Drop::ServicePortUnknown`],
/// [`Drop::ServiceAddressUnknown`].
#[inline(always)]
pub fn connect(call: &impl SocketCall) -> Result<(), Drop> {
    if is_of_this_node(call.netns_cookie()) { point_at_backend(call) } else { Ok(()) }
}

/// Handles the address to which a process sends one datagram.
///
/// # Errors
/// See [`connect`].
#[inline(always)]
pub fn send(call: &impl SocketCall) -> Result<(), Drop> {
    // With a connected IPv6 socket that has a v4-mapped peer, the kernel itself calls this program,
    // with the address to which the socket was redirected.
    if is_of_this_node(call.netns_cookie()) && !call.is_connected_with(&call.address(), call.port()) {
        return point_at_backend(call);
    }
    Ok(())
}

#[inline(always)]
fn point_at_backend(call: &impl SocketCall) -> Result<(), Drop> {
    let Some(protocol) = call.protocol() else {
        return Ok(());
    };
    let asked = asked_for(call);
    // The kernel sends packets from 127.0.0.0/8 only by the loopback link, so a redirected call
    // would fail (EINVAL). Receivers drop packets from ::1.
    let backend = if is_loopback(&call.bound_address()) {
        count_missed(&asked, protocol);
        None
    } else {
        match pod_at_host_port(&asked, protocol) {
            Some(pod) => Some(pod),
            None => backend_of_service(call, &asked, protocol)?,
        }
    };
    match backend {
        Some(backend) => {
            let socket = redirected(call, backend.address, backend.port);
            if maps::redirected_socket(&socket).is_none_or(|known| known != asked) {
                maps::remember_redirected_socket(&socket, &asked);
            }
            call.set_address(&backend.address);
            call.set_port(backend.port);
        }
        // The socket may have been redirected to this address before. Now the process means the
        // backend itself.
        None => maps::forget_redirected_socket(&redirected(call, asked.address, asked.port)),
    }
    Ok(())
}

/// Shows a process the address that it asked for, as the source of a datagram or as the peer of its
/// socket.
#[inline(always)]
pub fn show(call: &impl SocketCall) {
    if !is_of_this_node(call.netns_cookie()) || call.protocol().is_none() {
        return;
    }
    if let Some(asked) = maps::redirected_socket(&redirected(call, call.address(), call.port())) {
        call.set_address(&asked.address);
        call.set_port(asked.port);
    }
}

/// Forgets where a closed socket was redirected. The agent attaches this program only with services.
#[inline(always)]
pub fn release(socket: &ClosedSocket) {
    if socket.protocol().is_some() && is_of_this_node(socket.netns_cookie()) {
        maps::forget_closed_socket(socket.cookie());
    }
}

#[inline(always)]
fn is_of_this_node(netns_cookie: u64) -> bool {
    let own = maps::netns_cookie();
    own != 0 && netns_cookie == own
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
    RedirectedSocket { cookie: call.socket_cookie(), address, port, kind: SOCKET_ASKED, reserved: [0; 5] }
}

/// Returns the address that stands for all addresses of the same family: the socket reaches no address
/// of the other family than that which it names.
#[inline(always)]
fn any_of(address: &Addr) -> Addr {
    if address.is_v4() { Addr::from_v4([0; 4]) } else { Addr::UNSPECIFIED }
}

/// Returns the pod behind a hostPort of an address of this node, loopback addresses included. As for
/// packets, other addresses do not count, because a hostIP may be any address.
#[inline(always)]
fn pod_at_host_port(asked: &SocketAddress, protocol: u8) -> Option<&'static Backend> {
    let backend = maps::backend(&asked.address, &any_of(&asked.address), asked.port, protocol)?;
    (is_loopback(&asked.address) || maps::is_own_address(&asked.address)).then_some(backend)
}

/// Returns the backend for a socket that asks for a service. A socket of UDP must keep its backend
/// from one datagram to the next, connected or not. So its number chooses, unless the service has
/// session affinity. The same serves TCP, where each connection has a socket of its own.
///
/// # Errors
/// [`Drop::NoBackend`], [`Drop::NoLocalBackend`], [`Drop::ServicePortUnknown`],
/// [`Drop::ServiceAddressUnknown`].
#[inline(always)]
fn backend_of_service(
    call: &impl SocketCall,
    asked: &SocketAddress,
    protocol: u8,
) -> Result<Option<&'static Backend>, Drop> {
    if !maps::has_services() {
        return Ok(None);
    }
    let Some(service) = service_of(asked, protocol) else {
        return service_network::refuse_unknown(&asked.address).map(|()| None);
    };
    if service.flags & SERVICE_NOT_FOR_PROCESSES != 0 {
        return Ok(None);
    }
    if let Some(reason) = service.refusal() {
        return Err(reason);
    }
    let cookie = call.socket_cookie();
    let choose = |service: &Service| match service.affinity {
        0 => maps::chosen_backend_of(service, nat::choice_of_socket(cookie, service.list)),
        _ => backend_of_this_node(service, asked, cookie, protocol),
    };
    // The agent may have removed the list just after this lookup. Then the service has another one.
    Ok(choose(service).or_else(|| choose(service_at(asked, protocol)?)))
}

// Not inlined: the key would take stack in the callers.
#[inline(never)]
fn service_of(asked: &SocketAddress, protocol: u8) -> Option<&'static Service> {
    maps::service(&asked.address, &any_of(&asked.address), asked.port, protocol, CLIENTS_INSIDE)
}

/// Returns the backend for a socket that asks for a service with session affinity. All processes of
/// this node are one client. A UDP socket begins a flow when it has no backend, or one to which new
/// flows no longer go.
// Not inlined: the keys would take stack in the caller.
#[inline(never)]
fn backend_of_this_node(
    service: &Service,
    asked: &SocketAddress,
    cookie: u64,
    protocol: u8,
) -> Option<&'static Backend> {
    if protocol == protocol::UDP
        && let Some(kept) = maps::kept_backend_of_socket(cookie, asked)
        && let Some(backend) = maps::listed_backend(service, &kept.address, kept.port)
    {
        return Some(backend);
    }
    let backend = maps::backend_for(service, &Addr::UNSPECIFIED)?;
    if protocol == protocol::UDP {
        maps::keep_backend_of_socket(cookie, asked, backend);
    }
    Some(backend)
}

// Not inlined: the keys would take stack in the caller.
#[inline(never)]
fn service_at(asked: &SocketAddress, protocol: u8) -> Option<&'static Service> {
    if !maps::has_services() {
        return None;
    }
    service_of(asked, protocol).filter(|service| service.flags & SERVICE_NOT_FOR_PROCESSES == 0)
}

/// Counts a call for a service by a socket that is bound to a loopback address.
#[inline(always)]
fn count_missed(asked: &SocketAddress, protocol: u8) {
    if service_at(asked, protocol).is_some() {
        maps::count_path(Path::BoundToLoopback, 0);
    }
}
