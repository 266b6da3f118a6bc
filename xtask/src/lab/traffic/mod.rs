//! Traffic between namespaces, from sockets of this process. No tool is needed, both ends report
//! what they saw, and every wait has a limit.
//!
//! By default the server listens on the unspecified address, so that a destination such as a
//! ClusterIP may be translated on the way: see [`Route`].

mod datagrams;
mod pattern;
mod ping;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, socket, sockopt};

pub use datagrams::{Count, Datagrams};
pub use ping::{PingReply, ping, ping_unfragmented};
pub use tcp::{Stream, tcp_exchange, tcp_exchange_on, tcp_stream, tcp_stream_on, tcp_throughput};
pub use udp::{udp_exchange, udp_exchange_on, udp_segments};

/// The longest time that a socket waits for the other end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Repeats a call that a signal has interrupted. The kernel does not restart a socket's call with a
/// time limit (signal(7)).
///
/// # Errors
/// Those of the call, except that it was interrupted.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Binds a socket to an address that an earlier exchange used, and retries while the address is in
/// use. Another thread may be starting a process at that moment. The new process holds a copy of
/// the earlier socket until it executes its program.
///
/// # Errors
/// Those of `bind`.
pub fn bound<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            outcome => return outcome,
        }
    }
}

/// Returns this loopback address with a port that the kernel gives to no other process until this
/// process ends. A socket that does not listen holds the port. Servers may bind it as well, one
/// after the other (`SO_REUSEADDR`); between two servers, no other process can take it.
///
/// # Errors
/// When every port is in use.
pub fn reserved_address(loopback: IpAddr) -> io::Result<SocketAddr> {
    let family = if loopback.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::new(loopback, 0))?;
    // The conversion is only for `local_addr`: this socket never listens.
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    #[expect(clippy::disallowed_methods, reason = "it holds the port until this process ends")]
    std::mem::forget(socket);
    Ok(address)
}

/// The client's destination, and the address on which the server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The client's destination.
    pub destination: SocketAddr,
    /// The server's address and port.
    pub listen: SocketAddr,
}

impl Route {
    /// Makes a route without translation: the server listens on this port of every address.
    pub fn to(address: IpAddr, port: u16) -> Self {
        Self::translated(SocketAddr::new(address, port), port)
    }

    /// Makes a route with a destination that is translated to the server's port on the way.
    pub fn translated(destination: SocketAddr, server_port: u16) -> Self {
        Self { destination, listen: SocketAddr::new(unspecified(destination), server_port) }
    }
}

/// Returns the unspecified address of the family of an address.
pub(crate) fn unspecified(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Observations of both ends. An exchange returns them only when every byte arrived as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The client's address, as the server saw it.
    pub peer_seen_by_server: SocketAddr,
    /// The client's address, as the client saw it.
    pub client: SocketAddr,
    /// The server's address, as the client saw it: the source of the answer.
    pub peer_seen_by_client: SocketAddr,
    /// Payload bytes from the client that the server read and compared.
    pub bytes: u64,
    /// The time from the first byte sent to the answer.
    pub duration: Duration,
    /// The longest time for which the server waited for the next byte.
    pub longest_pause: Duration,
}

impl Exchange {
    /// Returns whether the server saw another address than the client's own.
    pub fn source_translated(&self) -> bool {
        self.peer_seen_by_server != self.client
    }

    /// Returns the payload rate in bits per second.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.duration.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_let_go_a_moment_later_is_bound() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = holder.local_addr().unwrap();
        assert_eq!(TcpListener::bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let holding = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(holder);
        });
        bound(|| TcpListener::bind(address)).unwrap();
        holding.join().unwrap();
    }

    #[test]
    fn a_reserved_port_is_for_one_server_after_the_other() {
        for loopback in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let address = reserved_address(loopback).unwrap();
            for _ in 0..2 {
                let server = bound(|| TcpListener::bind(address)).unwrap();
                assert_eq!(server.local_addr().unwrap(), address);
            }
        }
    }
}
