//! Datagrams of translated flows in fragments.

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, Ipv4Header, ip_number};
use podwire_common::reason::Drop as Reason;
use xtask::lab::{Lab, Mode, Node, frames};

use super::ask;
use crate::sockets::udp;

#[test]
fn a_datagram_in_fragments_crosses_both_ways() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        let server = udp(lab.world(), "0.0.0.0:53");
        let client = udp(&pod, "0.0.0.0:40000");
        let large = "fragment ".repeat(1000);
        let seen = ask(&client, &server, SocketAddr::new(lab.world_address(), 53), &large);
        assert_eq!(seen.ip(), node.address(), "{mode:?}");
    }
}

#[test]
fn fragment_before_first_is_counted_and_the_hosts_own_pass() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let to = SocketAddr::new(lab.world_address(), 53);
    let of_pod = udp(&pod, "0.0.0.0:40000");
    let of_host = udp(node, "0.0.0.0:50000");
    let peers = [ask(&of_pod, &server, to, "pod"), ask(&of_host, &server, to, "host")];
    let large = vec![7; 4000];
    for (client, peer, arrives) in [(&of_pod, peers[0], false), (&of_host, peers[1], true)] {
        let before = overtaken(node);
        let fragments = cut(&lab, peer, &large);
        let backwards: Vec<&[u8]> = fragments.iter().rev().map(Vec::as_slice).collect();
        frames::send_all(lab.underlay(), "node1", &backwards).unwrap();
        // A whole datagram follows. When it arrives, the node has handled the fragments.
        server.send_to(b"after", peer).unwrap();
        let mut buffer = vec![0; 5000];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        if arrives {
            assert_eq!(client.recv(&mut [0; 10]).unwrap(), b"after".len());
        }
        let counted = overtaken(node) - before;
        if arrives {
            assert_eq!((length, counted), (large.len(), 0), "the host reassembles fragments in any order");
        } else {
            assert_eq!((&buffer[..length], counted), (&b"after"[..], 1));
        }
    }
}

fn overtaken(node: &Node) -> u64 {
    node.drops().unwrap().get(Reason::FragmentBeforeFirst.name()).copied().unwrap_or_default()
}

/// Returns the frames of a datagram without UDP checksum from the world to the node, cut into three
/// fragments.
fn cut(lab: &Lab, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    const PIECE: usize = 1400;
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (lab.world_address(), to.ip()) else {
        panic!("{to} is not IPv4");
    };
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [53u16, to.port(), length, 0].map(u16::to_be_bytes).concat();
    datagram.extend_from_slice(payload);
    let pieces = datagram.chunks(PIECE).enumerate().map(|(number, piece)| {
        let mut header = Ipv4Header::new(
            u16::try_from(piece.len()).unwrap(),
            64,
            ip_number::UDP,
            source.octets(),
            destination.octets(),
        )
        .unwrap();
        header.identification = to.port();
        header.dont_fragment = false;
        header.more_fragments = (number + 1) * PIECE < datagram.len();
        header.fragment_offset = u16::try_from(number * PIECE / 8).unwrap().try_into().unwrap();
        header.header_checksum = header.calc_header_checksum();
        let ethernet = [lab.node(0).mac("eth0").unwrap(), lab.underlay().mac("br0").unwrap()].concat();
        [ethernet, EtherType::IPV4.0.to_be_bytes().to_vec(), header.to_bytes().to_vec(), piece.to_vec()]
            .concat()
    });
    pieces.collect()
}
