//! Source translation beside everybody else who uses the node's address.

mod errors;
mod exclusions;
mod fragments;
mod host_flows;
mod inbound;
mod load;
mod uplinks;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
use xtask::lab::Ns;

/// The longest that anybody waits for the other end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A UDP socket bound in a namespace.
pub fn udp(ns: &Ns, address: &str) -> UdpSocket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = ns.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A listening TCP socket of a namespace.
fn listen(ns: &Ns, address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    ns.enter(|| TcpListener::bind(address)).unwrap().unwrap()
}

/// A TCP connection from a port of a namespace's own choice.
fn connect_from(ns: &Ns, port: u16, to: SocketAddr) -> TcpStream {
    let socket = ns
        .enter(|| -> rustix::io::Result<_> {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
            connect(&socket, &to)?;
            Ok(socket)
        })
        .unwrap()
        .unwrap_or_else(|error| panic!("connect from port {port} to {to}: {error}"));
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Both ends of a connection speak, and hear what the other said.
fn assert_alive(client: &TcpStream, server: &TcpStream, what: &str) {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for (mut from, mut to) in [(client, server), (server, client)] {
        from.write_all(what.as_bytes()).unwrap();
        let mut heard = vec![0; what.len()];
        to.read_exact(&mut heard).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(heard, what.as_bytes());
    }
}

/// A question and its answer; who the server saw.
fn ask(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, what: &str) -> SocketAddr {
    client.send_to(what.as_bytes(), to).unwrap();
    let mut buffer = vec![0; 65536];
    let (length, peer) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&buffer[..length], what.as_bytes());
    server.send_to(what.as_bytes(), peer).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((&buffer[..length], from), (what.as_bytes(), to));
    peer
}

/// What a server sees of a node that it knows by this address.
fn of_node(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Asks again until there is an answer, for as long as the agent may take to look (its tick is ten seconds).
fn wait_until<T>(mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE + PATIENCE;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() > deadline {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
