//! A node with a VXLAN device that takes frames for one link address only: every program that
//! writes inner frames for it writes that address.

use podwire_common::addr::Mac;
use podwire_common::names::INNER_SOURCE_MAC;
use podwire_common::names::programs::{FROM_POD, TO_OVERLAY, TO_UPLINK};
use podwire_common::reason::Path;
use podwire_core::model::{Family, Mode};

use crate::fixture::*;
use crate::kinds::{ack, from_a, out};
use crate::packets::*;

const VTEP: [u8; 6] = [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5c];
const OTHER: [u8; 6] = [0x6a, 0x0f, 0x33, 0xb2, 0x71, 0x5d];

/// Returns node 1, which knows the link address of node 2's device.
fn told() -> Fixture {
    let mut node = Fixture::new(Mode::Vxlan);
    tell(&mut node, Some(VTEP));
    node
}

fn tell(node: &mut Fixture, mac: Option<[u8; 6]>) {
    node.model.remote.get_mut("node2").unwrap().vtep_macs =
        mac.map(|bytes| (Family::V4, Mac { bytes })).into_iter().collect();
    node.fill();
}

/// Returns what leaves for node 2 when a packet is forwarded to it.
fn in_tunnel(packet: &Packet, mac: [u8; 6]) -> Expect {
    let ports = (40000, 80);
    let flow = flow_of(packet.source, packet.destination, ports, 6);
    let outer = Vxlan::new(NODE1, NODE2).with(|outer| outer.source_port = flow.tunnel_source_port().get());
    Expect::Redirect(
        Path::TunnelOut,
        outer.around(&packet.clone().with(|packet| packet.ttl -= 1).macs(mac, INNER_SOURCE_MAC).build()),
    )
}

#[test]
fn a_pods_packets_bear_it_the_first_and_those_of_a_known_flow() {
    let mut node = told();
    let link = node.pod_a;
    let packet = from_a(REMOTE_POD, ack(40000, 80));
    for what in ["the first", "of a known flow"] {
        node.check(what, FROM_POD, link, &packet.build(), in_tunnel(&packet, VTEP));
    }
    tell(&mut node, Some(OTHER));
    node.check("after a change", FROM_POD, link, &packet.build(), in_tunnel(&packet, OTHER));
    tell(&mut node, None);
    let usual = podwire_common::names::INNER_DESTINATION_MAC;
    node.check("taken back", FROM_POD, link, &packet.build(), in_tunnel(&packet, usual));
    let other_node = from_a(POD_OF_NODE3, ack(40000, 80));
    tell(&mut node, Some(VTEP));
    let ran = node.run(FROM_POD, link, &other_node.build(), 0);
    let inner_destination = &ran.frame[ETHERNET + 36..][..6];
    assert_eq!(inner_destination, usual, "frames to another node have the usual address");
}

#[test]
fn what_the_host_stack_sends_there_bears_it() {
    let mut node = told();
    let (link, packet) = (node.uplink, out(NODE1, REMOTE_POD, tcp(40000, 80)));
    let leaves = Expect::Stack(Path::StackToTunnel, packet.clone().macs(VTEP, INNER_SOURCE_MAC).build());
    node.check("by the device", TO_OVERLAY, link, &packet.build(), leaves);
    let packet = out(POD_A, NODE2, tcp(40000, 80));
    let ran = node.run(TO_UPLINK, link, &packet.build(), 0);
    assert_eq!(ran.frame[ETHERNET + 36..][..12], [VTEP, INNER_SOURCE_MAC].concat(), "by the uplink");
}
