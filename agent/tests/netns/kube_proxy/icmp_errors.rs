//! ICMP errors about flows through a service reach the right end, with the service's address.

use std::io::ErrorKind;
use std::net::SocketAddr;

use xtask::lab::{Lab, Mode, Ns};

use super::Cluster;
use crate::backends::{Connection, ask_by_udp, expect_refusal};
use crate::icmp_errors::path_mtu;
use crate::sockets::{UdpSocket, unspecified};

/// The MTU to which the path between the nodes shrinks.
const SHRUNK: u32 = 1280;
const MEBIBYTE: usize = 1 << 20;
/// No more errors than the kernel sends without a pause (`icmp_ratelimit`, icmp(7)).
const REFUSALS: usize = 3;

#[test]
fn a_closed_port_of_a_backend_refuses_by_its_service() {
    Cluster::each(|cluster| {
        let nodes = cluster.lab.nodes().iter().map(|node| &**node);
        let pods = ["client-1", "client-2", "web-1"].map(|name| &**cluster.pod(name));
        let (tcp, udp) = (cluster.services().web_tcp(), cluster.services().web_udp());
        for client in nodes.chain(pods) {
            for _ in 0..REFUSALS {
                expect_refusal(client, tcp).unwrap();
                assert_eq!(udp_error(client, udp), ErrorKind::ConnectionRefused, "{}", client.name());
            }
        }
    });
}

#[test]
fn a_connection_through_a_service_lives_when_the_path_shrinks() {
    Cluster::each_of(&Lab::builder().router(true), |cluster| {
        let (_backends, services) = (cluster.serve(), cluster.services());
        let (client, solo) = (cluster.pod("client-1"), cluster.pod("solo"));
        set_path_mtu(cluster, 1500);
        let mut connections = [&**client, &**cluster.lab.node(0)]
            .map(|client| Connection::open(client, services.solo()).unwrap());
        connections.iter_mut().for_each(|connection| connection.echo(MEBIBYTE).unwrap());
        set_path_mtu(cluster, SHRUNK);
        connections.iter_mut().for_each(|connection| connection.echo(8 * MEBIBYTE).unwrap());
        // In VXLAN mode only the backend learns the MTU: its packets go past the stack. The
        // client's packets come out of the stack, and routers may fragment their outer packets.
        let client_address = cluster.address("client-1");
        let learnt = match cluster.mode {
            // No host believes that a path of IPv6 takes less than its minimum MTU.
            Mode::Vxlan if client_address.is_ipv6() => SHRUNK,
            Mode::Vxlan => SHRUNK - 50,
            Mode::Direct => SHRUNK,
        };
        assert_eq!(path_mtu(solo, client_address), Some(learnt));
        let expected = (cluster.mode == Mode::Direct).then_some(SHRUNK);
        assert_eq!(path_mtu(client, services.solo), expected);
        if client_address.is_ipv6() {
            // Only the sender fragments: it loses its first datagram that is larger than the path.
            // These connections lose only segments, which TCP sends again.
            for client in ["client-1", "client-2"].map(|name| cluster.pod(name)) {
                for backend in cluster.site.web {
                    let backend = SocketAddr::new(cluster.address(backend), 8080);
                    Connection::open(client, backend).unwrap().echo(MEBIBYTE).unwrap();
                }
            }
        }
        let dns = services.dns.map(|(address, _)| ("client-2", SocketAddr::new(address, 53)));
        let web = ["client-1", "client-2"].map(|client| (client, services.web_udp()));
        for (client, service) in web.into_iter().chain(dns) {
            for _ in 0..10 {
                ask_by_udp(cluster.pod(client), service, 4000).unwrap();
            }
        }
    });
}

/// Sets the MTU of the router's path to both nodes. The nodes forget what they have learnt of it.
fn set_path_mtu(cluster: &Cluster, mtu: u32) {
    for (number, node) in cluster.lab.nodes().iter().enumerate() {
        cluster.lab.set_path_mtu(number, mtu).unwrap();
        for family in ["-4", "-6"] {
            node.exec(&["ip", family, "route", "flush", "cache"]).unwrap();
        }
    }
}

/// Returns the error that a connected socket gets about the datagram that it has sent.
fn udp_error(from: &Ns, destination: SocketAddr) -> ErrorKind {
    let socket = from.enter(|| UdpSocket::bind((unspecified(destination.ip()), 0))).unwrap().unwrap();
    socket.connect(destination).unwrap();
    socket.send(&[0; 100]).unwrap();
    socket.recv(&mut [0; 100]).expect_err("nobody listens").kind()
}
