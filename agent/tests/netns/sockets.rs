//! Sockets in a namespace, for tests that need more control than an exchange gives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::ops::Deref;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use xtask::lab::Ns;
use xtask::lab::traffic::{bound, uninterrupted};

/// The longest time that a socket waits for the other end.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A UDP socket that waits [`PATIENCE`] at most. It goes on with a wait that the kernel interrupts
/// for work of its own: with a time limit, the kernel does not.
#[derive(Debug)]
pub struct UdpSocket(std::net::UdpSocket);

impl UdpSocket {
    pub fn bind(address: impl ToSocketAddrs) -> io::Result<Self> {
        std::net::UdpSocket::bind(address)?.try_into()
    }

    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.recv(buffer))
    }

    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        uninterrupted(|| self.0.recv_from(buffer))
    }
}

impl TryFrom<std::net::UdpSocket> for UdpSocket {
    type Error = io::Error;

    fn try_from(socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }
}

impl Deref for UdpSocket {
    type Target = std::net::UdpSocket;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Returns a bound UDP socket.
pub fn udp(ns: &Ns, address: impl ToSocketAddrs) -> UdpSocket {
    let address = one(address);
    ns.enter(|| bound(|| UdpSocket::bind(address))).unwrap().unwrap()
}

/// Returns a listening TCP socket, which waits no longer than other sockets.
pub fn listen(ns: &Ns, address: impl ToSocketAddrs) -> TcpListener {
    let address = one(address);
    let listener = ns.enter(|| bound(|| TcpListener::bind(address))).unwrap().unwrap();
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(PATIENCE)).unwrap();
    listener
}

/// Connects from a chosen address and port (0: the kernel's choice). Another connection, to another
/// destination, may have the same source.
pub fn connect_from(ns: &Ns, from: impl ToSocketAddrs, to: impl ToSocketAddrs) -> io::Result<TcpStream> {
    connect_by(ns, None, from, to)
}

/// Like [`connect_from`], with a socket that is bound to a device, or to none.
pub fn connect_by(
    ns: &Ns,
    device: Option<&str>,
    from: impl ToSocketAddrs,
    to: impl ToSocketAddrs,
) -> io::Result<TcpStream> {
    let (from, to) = (one(from), one(to));
    let socket = ns.enter(|| -> io::Result<_> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
        if let Some(device) = device {
            setsockopt(&socket, BindToDevice, &device.into())?;
        }
        bound(|| Ok(bind(&socket, &from)?))?;
        connect(&socket, &to)?;
        Ok(socket)
    });
    let stream = TcpStream::from(socket.unwrap()?);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks until there is an answer, for as long as the agent may take to look (its tick is ten
/// seconds).
pub fn wait_until<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + 6 * PATIENCE;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the unspecified address of the family of an address.
pub fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn one(address: impl ToSocketAddrs) -> SocketAddr {
    address.to_socket_addrs().unwrap().next().unwrap()
}
