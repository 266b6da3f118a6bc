//! Questions and answers that wait no longer than the network's patience, with short reasons for
//! failures.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketType};
use xtask::lab::{Ns, traffic};

use super::cluster::{Cluster, Place};
use super::{Fault, Outcome, demand};
use crate::sockets::{UdpSocket, unspecified};

/// The end of the reason for a refusal.
pub const REFUSED: &str = "is refused";

/// The protocol of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        }
    }
}

/// A client that has been answered and is still open.
pub enum Flow {
    Tcp { client: TcpStream, server: TcpStream },
    Udp { client: UdpSocket, to: SocketAddr },
}

/// Returns the source of a client that may have any address and port.
pub fn any(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(unspecified(to.ip()), 0)
}

/// Asks a question from a new client with any port, and gets an answer. Returns the source that the
/// server saw.
pub fn ask(
    cluster: &Cluster,
    protocol: Protocol,
    from: &Ns,
    server: &Place,
    to: SocketAddr,
) -> Outcome<IpAddr> {
    Ok(start(cluster, protocol, from, 0, server, to)?.1.ip())
}

/// Like [`ask`], from a particular port. The flow stays open.
pub fn start(
    cluster: &Cluster,
    protocol: Protocol,
    from: &Ns,
    port: u16,
    server: &Place,
    to: SocketAddr,
) -> Outcome<(Flow, SocketAddr)> {
    match protocol {
        Protocol::Tcp => {
            let source = SocketAddr::new(unspecified(to.ip()), port);
            let client = connect(cluster, from, source, to)?;
            let (accepted, seen) = accept(cluster, &client, server)?;
            let flow = Flow::Tcp { client, server: accepted };
            flow.go_on(server)?;
            Ok((flow, seen))
        }
        Protocol::Udp => {
            let client = udp(cluster, from, port)?;
            let seen = ask_by(&client, server, to, 100)?;
            Ok((Flow::Udp { client, to }, seen))
        }
    }
}

impl Flow {
    /// Exchanges another question and answer.
    pub fn go_on(&self, place: &Place) -> Outcome {
        let (client, server) = match self {
            Flow::Tcp { client, server } => (client, server),
            Flow::Udp { client, to } => return ask_by(client, place, *to, 100).map(|_| ()),
        };
        for (what, mut from, mut to) in [("the question", client, server), ("the answer", server, client)] {
            let sent = unique(100);
            from.write_all(&sent).map_err(|error| wrong(what, &error))?;
            let mut heard = vec![0; sent.len()];
            to.read_exact(&mut heard).map_err(|error| wrong(what, &error))?;
            demand(heard == sent, || format!("{what} was another"))?;
        }
        Ok(())
    }
}

/// Connects from `source`, which may be [`any`].
pub fn connect(cluster: &Cluster, from: &Ns, source: SocketAddr, to: SocketAddr) -> Outcome<TcpStream> {
    let patience = Some(cluster.patience());
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let bound = || -> io::Result<_> {
        let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        traffic::bound(|| Ok(rustix::net::bind(&socket, &source)?))?;
        sockopt::set_socket_timeout(&socket, Timeout::Send, patience)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, patience)?;
        Ok(socket)
    };
    let socket = from.enter(bound)?.with_context(|| format!("bind {source}"))?;
    let connected = traffic::uninterrupted(|| Ok(rustix::net::connect(&socket, &to)?));
    connected.map_err(|error| wrong("the connection", &error))?;
    Ok(socket.into())
}

/// Returns the server's end of a connection and the source that it sees. Skips earlier connections
/// that were given up.
pub fn accept(cluster: &Cluster, mut client: &TcpStream, server: &Place) -> Outcome<(TcpStream, SocketAddr)> {
    let sent = unique(100);
    client.write_all(&sent).map_err(|error| wrong("the question", &error))?;
    loop {
        let (mut stream, peer) = server.tcp.accept().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => Fault::Wrong("somebody else took the connection".to_owned()),
            _ => wrong("accept", &error),
        })?;
        stream.set_read_timeout(Some(cluster.patience()))?;
        stream.set_write_timeout(Some(cluster.patience()))?;
        let mut heard = vec![0; sent.len()];
        if stream.read_exact(&mut heard).is_ok() && heard == sent {
            return Ok((stream, peer));
        }
    }
}

/// Returns a client's socket of the cluster's family. It is not connected, so it shows which
/// address answers.
pub fn udp(cluster: &Cluster, ns: &Ns, port: u16) -> Result<UdpSocket> {
    let any = unspecified(cluster.node.address);
    let socket = ns
        .enter(|| traffic::bound(|| UdpSocket::bind((any, port))))?
        .with_context(|| format!("bind UDP {port} in {}", ns.name()))?;
    socket.set_read_timeout(Some(cluster.patience()))?;
    Ok(socket)
}

/// Sends a datagram of this size that no end waits for.
pub fn send(client: &UdpSocket, to: SocketAddr, size: usize) -> Outcome {
    client.send_to(&unique(size), to).map(|_| ()).map_err(|error| wrong("the datagram", &error))
}

/// Exchanges datagrams of this size. Returns the source that the server saw.
pub fn ask_by(client: &UdpSocket, server: &Place, to: SocketAddr, size: usize) -> Outcome<SocketAddr> {
    let (question, answer) = (unique(size), unique(size));
    client.send_to(&question, to).map_err(|error| wrong("the question", &error))?;
    let (_, peer) = hear(&server.udp, &question).map_err(|error| wrong("the question", &error))?;
    server.udp.send_to(&answer, peer).map_err(|error| wrong("the answer", &error))?;
    let (_, from) = hear(client, &answer).map_err(|error| wrong("the answer", &error))?;
    demand(from == to, || format!("{from} answered for {to}"))?;
    Ok(peer)
}

/// Sends a datagram to a port without a listener, from a socket that gets the error.
pub fn ask_nobody(cluster: &Cluster, ns: &Ns, to: SocketAddr) -> Outcome {
    let client = udp(cluster, ns, 0)?;
    ns.enter(|| client.connect(to))??;
    client.send(&unique(100)).map_err(|error| wrong("the question", &error))?;
    client.recv(&mut [0; 100]).map(|_| ()).map_err(|error| wrong("the question", &error))
}

/// Waits for one datagram. Other datagrams are late ones of an earlier case.
fn hear(socket: &UdpSocket, expected: &[u8]) -> io::Result<(usize, SocketAddr)> {
    let mut buffer = vec![0; 65536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        if &buffer[..length] == expected {
            return Ok((length, from));
        }
    }
}

/// Returns bytes that no other question or answer has.
fn unique(size: usize) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    number.into_iter().cycle().take(size).collect()
}

/// Returns the fault for an error. It tells a missing answer from a refusal.
fn wrong(what: &str, error: &io::Error) -> Fault {
    let how = match Errno::from_io_error(error) {
        // Each call has its own error for a timeout.
        Some(Errno::AGAIN | Errno::TIMEDOUT | Errno::INPROGRESS) => "is lost".to_owned(),
        Some(Errno::CONNREFUSED) => REFUSED.to_owned(),
        Some(Errno::CONNRESET) => "is reset".to_owned(),
        _ => format!("fails: {error}"),
    };
    Fault::Wrong(format!("{what} {how}"))
}
