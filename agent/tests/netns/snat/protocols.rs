//! Pods' packets to the world with other protocols than TCP, UDP and ICMP.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use podwire_common::reason::Drop;
use rustix::net::{AddressFamily, Protocol, SocketType, bind, ipproto, socket};
use xtask::lab::{Lab, Ns};

use super::ask;
use crate::check::Counted;
use crate::sockets::UdpSocket;

const SERVER: u16 = 5000;
const CLIENT: u16 = 40000;
const IP_HEADER: usize = 20;
/// GRE without a key and a sequence number, around a few bytes.
const GRE: [u8; 8] = [0, 0, 8, 0, b'p', b'o', b'd', b's'];

#[test]
fn two_pods_ask_one_server_by_udp_lite() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let server = open(lab.world(), SocketType::DGRAM, ipproto::UDPLITE, SERVER);
    let ports = ["one", "two"].map(|name| {
        let pod = node.add_pod(name).unwrap();
        let client = open(&pod, SocketType::DGRAM, ipproto::UDPLITE, CLIENT);
        for _ in 0..3 {
            let seen = ask(&client, &server, (lab.world_address(), SERVER).into(), name);
            assert_eq!(seen.ip(), node.address(), "{name}");
        }
        ask(&client, &server, (lab.world_address(), SERVER).into(), name).port()
    });
    assert_eq!(ports[0], CLIENT);
    assert_ne!(ports[1], CLIENT);
}

#[test]
fn the_first_pod_keeps_a_server_of_a_protocol_without_ports() {
    for (what, protocol) in [("GRE", ipproto::GRE), ("ESP", ipproto::ESP), ("IP in IP", ipproto::IPIP)] {
        let lab = Lab::builder().nodes(1).build().unwrap();
        let node = lab.node(0);
        let (first, second) = (node.add_pod("first").unwrap(), node.add_pod("second").unwrap());
        let server = open(lab.world(), SocketType::RAW, protocol, 0);
        let client = open(&first, SocketType::RAW, protocol, 0);
        let mut buffer = [0; 1000];
        for _ in 0..3 {
            client.send_to(&GRE, (lab.world_address(), 0)).unwrap();
            let (length, peer) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[IP_HEADER..length], peer.ip()), (&GRE[..], node.address()), "{what}");
            server.send_to(&GRE, peer).unwrap();
            let (length, peer) = client.recv_from(&mut buffer).unwrap();
            let answer = (&buffer[IP_HEADER..length], peer.ip());
            assert_eq!(answer, (&GRE[..], lab.world_address()), "{what}");
        }
        let before = Counted::quiet(&lab);
        let client = open(&second, SocketType::RAW, protocol, 0);
        client.send_to(&GRE, (lab.world_address(), 0)).unwrap();
        let grown = Counted::quiet(&lab).since(&before);
        assert_eq!(grown.drops(0).get(Drop::SnatPortsExhausted.name()), Some(&1), "{what}: {grown}");
    }
}

#[test]
fn what_authenticates_its_addresses_is_refused_and_counted() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let pod = lab.node(0).add_pod("pod").unwrap();
    let before = Counted::quiet(&lab);
    let client = open(&pod, SocketType::RAW, ipproto::AH, 0);
    client.send_to(&[0; 24], (lab.world_address(), 0)).unwrap();
    let grown = Counted::quiet(&lab).since(&before);
    assert_eq!(grown.drops(0).get(Drop::SnatImpossible.name()), Some(&1), "{grown}");
    // Pods of the cluster see the sender's own address.
    let other = lab.node(0).add_pod("other").unwrap();
    let server = open(&other, SocketType::RAW, ipproto::AH, 0);
    client.send_to(&[0; 24], (other.address(), 0)).unwrap();
    let peer: IpAddr = server.recv_from(&mut [0; 1000]).unwrap().1.ip();
    assert_eq!(peer, pod.address());
}

/// Opens a socket. A raw socket receives the IP header, too.
fn open(ns: &Ns, kind: SocketType, protocol: Protocol, port: u16) -> UdpSocket {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = socket(AddressFamily::INET, kind, Some(protocol))?;
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        std::net::UdpSocket::from(socket).try_into()
    };
    ns.enter(open).unwrap().unwrap()
}
