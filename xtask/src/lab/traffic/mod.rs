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
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

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
