//! A node's 127.0.0.1 is its own, even with `route_localnet`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpStream};

use podwire_common::reason::Drop;
use xtask::lab::{Lab, Mode};

use crate::packets::{Packet, Transport, Vxlan, inner, tcp, udp};
use crate::refused::{Row, refused};
use crate::{sockets, v4};

const PORT: u16 = 7000;
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 66);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn nobody_reaches_a_nodes_127_0_0_1() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let stranger = lab.add_host("stranger", IpAddr::V4(STRANGER)).unwrap();
        let [pod, far] = [0, 1].map(|node| lab.node(node).add_pod("pod").unwrap());
        let node = lab.node(0);
        node.sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
        // The kernel must not reject the source 127.0.0.1 on its own.
        node.sysctl("net/ipv4/conf/all/rp_filter", "0").unwrap();
        let datagrams = sockets::udp(node, (LOOPBACK, PORT));
        datagrams.set_nonblocking(true).unwrap();
        let connections = sockets::listen(node, (LOOPBACK, PORT));
        let everywhere = sockets::udp(node, (Ipv4Addr::UNSPECIFIED, PORT + 1));
        everywhere.set_nonblocking(true).unwrap();

        let (node_mac, stranger_mac) = (node.mac("eth0").unwrap(), stranger.mac("eth0").unwrap());
        let own = v4(pod.address());
        let from_pod = |source, destination, transport: Transport| {
            Packet::new(source, destination, transport).macs(pod.host_mac(), pod.eth0_mac()).build()
        };
        let from_stranger = |source, destination, transport: Transport| {
            Packet::new(source, destination, transport).macs(node_mac, stranger_mac)
        };
        let rows: Vec<Row<'_>> = vec![
            ("a datagram to it", from_pod(own, LOOPBACK, udp(1, PORT)), Drop::LoopbackAddress),
            ("a connection to it", from_pod(own, LOOPBACK, tcp(1, PORT)), Drop::LoopbackAddress),
            ("to its alias", from_pod(own, [127, 9, 9, 9].into(), udp(1, PORT)), Drop::LoopbackAddress),
            ("from it", from_pod(LOOPBACK, v4(node.address()), udp(1, PORT + 1)), Drop::LoopbackAddress),
        ];
        refused(&lab, 0, (&pod, "eth0"), &rows);
        let group = |frame: Packet| frame.macs([0xff; 6], stranger_mac).build();
        let mut rows: Vec<Row<'_>> = vec![
            (
                "a neighbour's datagram to it",
                from_stranger(STRANGER, LOOPBACK, udp(1, PORT)).build(),
                Drop::LoopbackAddress,
            ),
            (
                "a neighbour's connection to it",
                from_stranger(STRANGER, LOOPBACK, tcp(1, PORT)).build(),
                Drop::LoopbackAddress,
            ),
            (
                "a neighbour's datagram from it",
                from_stranger(LOOPBACK, v4(node.address()), udp(1, PORT + 1)).build(),
                Drop::LoopbackAddress,
            ),
            (
                "in a broadcast frame",
                group(from_stranger(STRANGER, LOOPBACK, udp(1, PORT))),
                Drop::LoopbackAddress,
            ),
        ];
        if mode == Mode::Vxlan {
            let outer = Vxlan::new(v4(lab.node(1).address()), v4(node.address()));
            let outer =
                outer.with(|outer| (outer.destination_mac, outer.source_mac) = (node_mac, stranger_mac));
            let inside = |source, destination, port| {
                outer.around(&inner(&Packet::new(source, destination, udp(1, port))))
            };
            rows.extend([
                ("inside VXLAN", inside(v4(far.address()), LOOPBACK, PORT), Drop::LoopbackAddress),
                (
                    "inside VXLAN, from it",
                    inside(LOOPBACK, v4(node.address()), PORT + 1),
                    Drop::InnerSourceNotOwned,
                ),
            ]);
        }
        refused(&lab, 0, (&stranger, "eth0"), &rows);
        for socket in [&datagrams, &everywhere] {
            assert_eq!(socket.recv(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        connections.set_nonblocking(true).unwrap();
        assert_eq!(connections.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // The node's own processes do reach it.
        node.enter(|| TcpStream::connect((LOOPBACK, PORT))).unwrap().unwrap();
    }
}
