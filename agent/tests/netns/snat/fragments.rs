//! Datagrams of translated flows in fragments.

use std::net::{IpAddr, SocketAddr};

use podwire_common::flow::protocol;
use podwire_common::reason::Drop as Reason;
use xtask::lab::{Lab, Mode, Node, frames, traffic};

use super::ask;
use crate::packets::{self, Packet, Transport};
use crate::packets6::{Extension, Packet6};
use crate::sockets::{udp, unspecified};
use crate::{FAMILIES, world_end};

#[test]
fn a_datagram_in_fragments_crosses_both_ways() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        for family in FAMILIES {
            let (world, address) = world_end(&lab, family);
            // With IPv6, the world learns from this which fragments fit the pod.
            traffic::ping(&pod, address, 9000).unwrap();
            let server = udp(world, (unspecified(address), 53));
            let client = udp(&pod, (unspecified(address), 40000));
            let large = "fragment ".repeat(1000);
            let seen = ask(&client, &server, SocketAddr::new(address, 53), &large);
            assert_eq!(seen.ip(), node.addresses()[family], "{mode:?}");
        }
    }
}

#[test]
fn fragment_before_first_is_counted_and_the_hosts_own_pass() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    for family in FAMILIES {
        let (world, address) = world_end(&lab, family);
        let server = udp(world, (unspecified(address), 53));
        let to = SocketAddr::new(address, 53);
        let of_pod = udp(&pod, (unspecified(address), 40000));
        let of_host = udp(node, (unspecified(address), 50000));
        let peers = [ask(&of_pod, &server, to, "pod"), ask(&of_host, &server, to, "host")];
        let large = vec![7; 4000];
        for (client, peer, arrives) in [(&of_pod, peers[0], false), (&of_host, peers[1], true)] {
            let before = overtaken(node);
            let fragments = cut(&lab, to, peer, &large);
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
                assert_eq!(
                    (length, counted),
                    (large.len(), 0),
                    "the host reassembles fragments in any order"
                );
            } else {
                assert_eq!((&buffer[..length], counted), (&b"after"[..], 1), "{peer}");
            }
        }
    }
}

fn overtaken(node: &Node) -> u64 {
    node.drops().unwrap().get(Reason::FragmentBeforeFirst.name()).copied().unwrap_or_default()
}

/// Returns the frames of a datagram from the world to the node, cut into three fragments.
fn cut(lab: &Lab, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    const PIECE: usize = 1400;
    let ports = packets::udp(from.port(), to.port());
    let macs = [lab.node(0).mac("eth0").unwrap(), lab.underlay().mac("br0").unwrap()];
    let piece_of = |datagram: &[u8], build: &dyn Fn(u16, bool, Vec<u8>) -> Vec<u8>| {
        let pieces = datagram.chunks(PIECE).enumerate().map(|(number, piece)| {
            let has_more = (number + 1) * PIECE < datagram.len();
            build(u16::try_from(number * PIECE / 8).unwrap(), has_more, piece.to_vec())
        });
        pieces.collect()
    };
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let whole = Packet::new(source, destination, ports).macs(macs[0], macs[1]);
            let whole = whole.with(|packet| packet.payload = payload.to_vec());
            piece_of(&whole.build()[packets::ETHERNET + 20..], &|offset, has_more, piece| {
                let fragment = whole.clone().with(|packet| {
                    (packet.transport, packet.payload) = (Transport::None(protocol::UDP), piece);
                    (packet.fragment, packet.identification) = ((offset, has_more), to.port());
                    packet.dont_fragment = false;
                });
                fragment.build()
            })
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let whole = Packet6::new(source, destination, ports).macs(macs[0], macs[1]);
            let whole = whole.with(|packet| packet.payload = payload.to_vec());
            piece_of(&whole.build()[packets::ETHERNET + 40..], &|offset, has_more, piece| {
                let fragment = whole.clone().with(|packet| {
                    (packet.transport, packet.payload) = (Transport::None(protocol::UDP), piece);
                    packet.extensions = vec![Extension::fragment(offset, has_more, to.port().into())];
                });
                fragment.build()
            })
        }
        ends => panic!("{ends:?} are of two families"),
    }
}
