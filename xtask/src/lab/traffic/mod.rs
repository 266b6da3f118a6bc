//! Traffic between namespaces, from sockets of this process: no tool is needed, both ends say what they saw, and
//! nothing waits without a limit.
//!
//! The server's end listens on the unspecified address unless told otherwise, so that a destination may be translated
//! on its way (a ClusterIP): see [`Route`].

mod datagrams;
mod pattern;
mod ping;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, socket, sockopt};

pub use datagrams::{Count, Datagrams};
pub use ping::{PingReply, ping, ping_unfragmented};
pub use tcp::{Stream, tcp_exchange, tcp_exchange_on, tcp_stream, tcp_stream_on};
pub use udp::{udp_exchange, udp_exchange_on, udp_segments};

/// The longest that a socket waits for the other end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Calls again what a signal has interrupted: with a time limit, the kernel does not restart a socket's call by itself
/// (signal(7)).
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Binds a socket to an address that the exchange before had. A process that another thread is starting at that moment
/// holds a copy of that exchange's socket until it executes its program: so what is in use is tried again for a while.
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

/// An address of loopback whose port the kernel gives to nobody else until this process ends. A socket holds it that does not
/// listen, beside which servers may, one after the other (`SO_REUSEADDR`): between two, no other process takes it.
///
/// # Errors
/// When every port is in use.
pub fn reserved_address() -> io::Result<SocketAddr> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // Only for its address: it never listens.
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    #[expect(clippy::disallowed_methods, reason = "it holds the port until this process ends")]
    std::mem::forget(socket);
    Ok(address)
}

/// Where the client sends to, and where the server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The client's destination.
    pub destination: SocketAddr,
    /// The server's own address and port.
    pub listen: SocketAddr,
}

impl Route {
    /// Nothing is translated on the way: the server listens on that port of every address.
    pub fn to(address: IpAddr, port: u16) -> Self {
        Self {
            destination: SocketAddr::new(address, port),
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
        }
    }

    /// The destination becomes the server's port on its way.
    pub fn translated(destination: SocketAddr, server_port: u16) -> Self {
        Self { destination, listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), server_port) }
    }
}

/// What both ends saw. Returned only when every byte arrived as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The client, as the server saw it.
    pub peer_seen_by_server: SocketAddr,
    /// The client's own address, as it saw it.
    pub client: SocketAddr,
    /// The server, as the client saw it: where the answer came from.
    pub peer_seen_by_client: SocketAddr,
    /// Payload from the client that the server read and compared.
    pub bytes: u64,
    /// From the first byte sent to the answer.
    pub duration: Duration,
    /// The longest that the server waited for the next byte.
    pub longest_pause: Duration,
}

impl Exchange {
    /// Whether the server saw another client than there was.
    pub fn source_translated(&self) -> bool {
        self.peer_seen_by_server != self.client
    }

    /// Payload rate, bits per second.
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
        let address = reserved_address().unwrap();
        for _ in 0..2 {
            let server = bound(|| TcpListener::bind(address)).unwrap();
            assert_eq!(server.local_addr().unwrap(), address);
        }
    }
}
