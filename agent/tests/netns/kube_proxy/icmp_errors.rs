//! ICMP errors about flows through a service reach the right end, with the service's address.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use xtask::lab::{Lab, Mode, Ns};

use super::backends::{Connection, ask_by_udp, expect_refusal};
use super::{Cluster, DNS, SOLO, WEB_UDP};

/// The MTU to which the path between the nodes shrinks.
const SHRUNK: u32 = 1280;
const MEBIBYTE: usize = 1 << 20;
/// No more errors than the kernel sends without a pause (`icmp_ratelimit`, icmp(7)).
const REFUSALS: usize = 3;

#[test]
fn a_closed_port_of_a_backend_refuses_by_its_service() {
    Cluster::each(|cluster| {
        let nodes = cluster.lab.nodes().iter().map(|node| &**node);
        let pods = ["client-1", "client-2", "dns"].map(|name| &**cluster.pod(name));
        for client in nodes.chain(pods) {
            for _ in 0..REFUSALS {
                expect_refusal(client, DNS).unwrap();
                assert_eq!(udp_error(client, DNS), ErrorKind::ConnectionRefused, "{}", client.name());
            }
        }
    });
}

#[test]
fn a_connection_through_a_service_lives_when_the_path_shrinks() {
    Cluster::each_of(&Lab::builder().router(true), |cluster| {
        let _backends = cluster.serve();
        let (client, solo) = (cluster.pod("client-1"), cluster.pod("solo"));
        let mut connections =
            [&**client, &**cluster.lab.node(0)].map(|client| Connection::open(client, SOLO).unwrap());
        connections.iter_mut().for_each(|connection| connection.echo(MEBIBYTE).unwrap());
        cluster.lab.set_path_mtu(0, SHRUNK).unwrap();
        cluster.lab.set_path_mtu(1, SHRUNK).unwrap();
        connections.iter_mut().for_each(|connection| connection.echo(8 * MEBIBYTE).unwrap());
        // In VXLAN mode only the backend learns the MTU: its packets go past the stack. The
        // client's packets come out of the stack, and routers may fragment their outer packets.
        let overhead = if cluster.mode == Mode::Vxlan { 50 } else { 0 };
        assert_eq!(path_mtu(solo, client.address()), Some(SHRUNK - overhead));
        let expected = (cluster.mode == Mode::Direct).then_some(SHRUNK);
        assert_eq!(path_mtu(client, SOLO.ip()), expected);
        for (client, service) in [("client-1", WEB_UDP), ("client-2", WEB_UDP), ("client-2", DNS)] {
            for _ in 0..10 {
                ask_by_udp(cluster.pod(client), service, 4000).unwrap();
            }
        }
    });
}

/// Returns the error that a connected socket gets about the datagram that it has sent.
fn udp_error(from: &Ns, destination: SocketAddr) -> ErrorKind {
    let socket = from.enter(|| UdpSocket::bind(("0.0.0.0", 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.connect(destination).unwrap();
    socket.send(&[0; 100]).unwrap();
    socket.recv(&mut [0; 100]).expect_err("nobody listens").kind()
}

/// Returns the path MTU that a pod has learnt.
fn path_mtu(from: &Ns, to: IpAddr) -> Option<u32> {
    let route = from.exec(&["ip", "route", "get", &to.to_string()]).unwrap();
    let mtu = route.split(" mtu ").nth(1).and_then(|rest| rest.split_whitespace().next());
    mtu.map(|mtu| mtu.parse().unwrap())
}
