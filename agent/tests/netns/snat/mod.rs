//! SNAT beside all other users of the node's address.

mod errors;
mod exclusions;
mod fragments;
mod host_flows;
mod host_rules;
mod inbound;
mod known_destinations;
mod load;
mod past_stack;
mod protocols;
mod uplinks;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};

use xtask::lab::Ns;

use crate::sockets::{PATIENCE, UdpSocket};

/// Asserts that each end of a connection receives what the other end sends.
pub fn assert_alive(client: &TcpStream, server: &TcpStream, what: &str) {
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for (mut from, mut to) in [(client, server), (server, client)] {
        from.write_all(what.as_bytes()).unwrap();
        let mut heard = vec![0; what.len()];
        to.read_exact(&mut heard).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(heard, what.as_bytes());
    }
}

/// Exchanges a question and its answer. Returns the source that the server saw.
pub fn ask(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, what: &str) -> SocketAddr {
    client.send_to(what.as_bytes(), to).unwrap();
    let mut buffer = vec![0; 65536];
    let (length, peer) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&buffer[..length], what.as_bytes());
    server.send_to(what.as_bytes(), peer).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((&buffer[..length], from), (what.as_bytes(), to));
    peer
}

/// Returns the source that a server sees: this address and this port of a node.
fn of_node(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

/// Lists what connection tracking knows of a family's flows.
fn tracked(ns: &Ns, family: usize, filter: &[&str]) -> String {
    let list = ["conntrack", "-L", "-f", ["ipv4", "ipv6"][family]];
    ns.exec(&[&list, filter].concat()).unwrap()
}
