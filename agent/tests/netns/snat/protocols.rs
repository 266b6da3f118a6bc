//! Pods' packets to the world with other protocols than TCP, UDP and ICMP.

use std::net::{IpAddr, SocketAddr};

use podwire_common::reason::Drop;
use rustix::net::{AddressFamily, Protocol, SocketType, bind, ipproto, socket};
use xtask::lab::{Lab, Ns};

use super::ask;
use crate::check::Counted;
use crate::sockets::UdpSocket;
use crate::{ANY, FAMILIES, Place as _, world_end};

const SERVER: u16 = 5000;
const CLIENT: u16 = 40000;
/// The IP header that a raw socket of each family receives with the packet.
const IP_HEADER: [usize; 2] = [20, 0];
/// GRE without a key and a sequence number, around a few bytes.
const GRE: [u8; 8] = [0, 0, 8, 0, b'p', b'o', b'd', b's'];
/// An authentication header with nothing behind it: an SPI, a sequence number, and 12 bytes that
/// authenticate nothing.
const AH: [u8; 24] = [59, 4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn two_pods_ask_one_server_by_udp_lite() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pods = ["one", "two"].map(|name| node.add_pod(name).unwrap());
    for family in FAMILIES {
        let (world, address) = world_end(&lab, family);
        let server = open(world, family, SocketType::DGRAM, ipproto::UDPLITE, SERVER);
        let ports = pods.each_ref().map(|pod| {
            let client = open(pod, family, SocketType::DGRAM, ipproto::UDPLITE, CLIENT);
            let ask = || ask(&client, &server, (address, SERVER).into(), pod.name());
            for _ in 0..3 {
                assert_eq!(ask().ip(), node.addresses()[family], "{}", pod.name());
            }
            ask().port()
        });
        assert_eq!(ports[0], CLIENT, "{address}");
        assert_ne!(ports[1], CLIENT, "{address}");
    }
}

#[test]
fn the_first_pod_keeps_a_server_of_a_protocol_without_ports() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [first, second] = ["first", "second"].map(|name| node.add_pod(name).unwrap());
    for (what, protocols) in
        [("GRE", [ipproto::GRE; 2]), ("ESP", [ipproto::ESP; 2]), ("IP in IP", [ipproto::IPIP, ipproto::IPV6])]
    {
        for family in FAMILIES {
            let (world, address) = world_end(&lab, family);
            let what = format!("{what}, {address}");
            let [client, other, server] =
                [&*first, &*second, world].map(|ns| open(ns, family, SocketType::RAW, protocols[family], 0));
            for _ in 0..3 {
                let seen = exchange((&client, &GRE), (&server, &GRE), address, &what);
                assert_eq!(seen, node.addresses()[family], "{what}");
            }
            assert_is_refused(&lab, &what, || other.send_to(&GRE, (address, 0)).unwrap());
        }
    }
}

#[test]
fn the_first_pod_keeps_its_pair_of_ports_of_an_sctp_server() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [first, second] = ["first", "second"].map(|name| node.add_pod(name).unwrap());
    for family in FAMILIES {
        let (world, address) = world_end(&lab, family);
        let [client, other, server] =
            [&*first, &*second, world].map(|ns| open(ns, family, SocketType::RAW, ipproto::SCTP, 0));
        let talk = |client, port, what| {
            let (question, answer) = (sctp(port, SERVER), sctp(SERVER, port));
            let seen = exchange((client, &question), (&server, &answer), address, what);
            assert_eq!(seen, node.addresses()[family], "{what}, {address}");
        };
        talk(&client, CLIENT, "the first pod");
        talk(&client, CLIENT, "the first pod again");
        assert_is_refused(&lab, &format!("SCTP, {address}"), || {
            other.send_to(&sctp(CLIENT, SERVER), (address, 0)).unwrap()
        });
        talk(&other, CLIENT + 1, "the second pod from another port");
    }
}

#[test]
fn what_authenticates_its_addresses_is_refused_and_counted() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
    for family in FAMILIES {
        let (before, world) = (Counted::quiet(&lab), world_end(&lab, family).1);
        let client = open(&pod, family, SocketType::RAW, ipproto::AH, 0);
        client.send_to(&AH, (world, 0)).unwrap();
        let grown = Counted::quiet(&lab).since(&before);
        assert_eq!(grown.drops(0).get(Drop::SnatImpossible.name()), Some(&1), "{world}: {grown}");
        // Pods of the cluster see the sender's own address.
        let server = open(&other, family, SocketType::RAW, ipproto::AH, 0);
        client.send_to(&AH, (other.end(family).1, 0)).unwrap();
        let peer: IpAddr = server.recv_from(&mut [0; 1000]).unwrap().1.ip();
        assert_eq!(peer, pod.end(family).1);
    }
}

/// Exchanges a question and its answer with raw sockets. Returns the source that the server saw.
fn exchange(
    (client, question): (&UdpSocket, &[u8]),
    (server, answer): (&UdpSocket, &[u8]),
    to: IpAddr,
    what: &str,
) -> IpAddr {
    let header = IP_HEADER[usize::from(to.is_ipv6())];
    let mut buffer = [0; 1000];
    client.send_to(question, (to, 0)).unwrap();
    let (length, peer) = server.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(&buffer[header..length], question, "{what}");
    server.send_to(answer, peer).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((&buffer[header..length], from.ip()), (answer, to), "{what}");
    peer.ip()
}

/// Asserts that the node drops what a pod sends, since the flow is another pod's.
fn assert_is_refused(lab: &Lab, what: &str, send: impl FnOnce() -> usize) {
    let before = Counted::quiet(lab);
    send();
    let grown = Counted::quiet(lab).since(&before);
    assert_eq!(grown.drops(0).get(Drop::SnatPortsExhausted.name()), Some(&1), "{what}: {grown}");
}

/// Returns an SCTP header with any verification tag and checksum.
fn sctp(from: u16, to: u16) -> Vec<u8> {
    [&from.to_be_bytes()[..], &to.to_be_bytes(), &[1, 2, 3, 4], &[0xab; 4]].concat()
}

/// Opens a socket.
fn open(ns: &Ns, family: usize, kind: SocketType, protocol: Protocol, port: u16) -> UdpSocket {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = socket([AddressFamily::INET, AddressFamily::INET6][family], kind, Some(protocol))?;
        bind(&socket, &SocketAddr::new(ANY[family], port))?;
        std::net::UdpSocket::from(socket).try_into()
    };
    ns.enter(open).unwrap().unwrap()
}
