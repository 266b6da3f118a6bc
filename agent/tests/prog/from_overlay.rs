//! `from_overlay`: packets that the VXLAN device has decapsulated.
//!
//! A test run has no tunnel key, so all packets but the first are real. They arrive on the uplink
//! as outer IP fragments or with outer options. `from_uplink` leaves those to the kernel, so they
//! pass the device and reach the program there.

use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::FROM_OVERLAY;
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

/// Returns outer headers from node 2 with an IP option, which `from_uplink` leaves to the VXLAN
/// device.
fn tunnel() -> Vxlan {
    Vxlan::new(NODE2, NODE1).with(|outer| {
        (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC);
        outer.options = vec![1; 4];
    })
}

fn to_a(source: std::net::Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, POD_A, transport)
}

#[test]
fn what_no_tunnel_brought_is_dropped() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let packet = to_a(REMOTE_POD, tcp(1, 2)).build();
    node.check("no key", FROM_OVERLAY, link, &packet, Expect::Drop(Reason::TunnelPeerUnknown));
    let echo = to_a(REMOTE_POD, Transport::EchoRequest { identifier: 1 }).build();
    node.check("an echo request", FROM_OVERLAY, link, &echo, Expect::Drop(Reason::TunnelPeerUnknown));
    // The programs answer the host stack's packets here.
    let sent = Packet::new(NODE1, REMOTE_POD, udp(1, 2)).build()[ETHERNET..].to_vec();
    let error = Packet::new(REMOTE_POD, NODE1, Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 0] })
        .with(|packet| packet.payload = sent)
        .build();
    node.check("an error", FROM_OVERLAY, link, &error, Expect::Pass);
}

#[test]
fn a_pod_is_reached_past_the_stack_or_through_it() {
    let mut node = Fixture::new(Mode::Vxlan);
    let stack = to_a(REMOTE_POD, tcp(40001, 80));
    let flow = Flow::new(REMOTE_POD.into(), POD_A.into(), Be16::new(40001), Be16::new(80), protocol::TCP);
    node.add_stack_flow(flow);
    let table = [
        ("TCP", to_a(REMOTE_POD, tcp(40000, 80)), Path::TunnelInDevice),
        ("the node itself", to_a(NODE2, udp(1, 2)), Path::TunnelInDevice),
        (
            "IP options",
            to_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.options = vec![1; 4]),
            Path::TunnelInDevice,
        ),
        (
            "a first fragment",
            to_a(REMOTE_POD, udp(1, 2)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (0, true));
            }),
            Path::TunnelInDevice,
        ),
        (
            "a later fragment",
            to_a(REMOTE_POD, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (2, false));
            }),
            Path::TunnelInDevice,
        ),
        ("a stack flow", stack, Path::TunnelToStack),
        ("for this node", Packet::new(REMOTE_POD, NODE1, udp(40000, 9)), Path::TunnelToStack),
        ("an error of the other node's", about_the_tunnel(NODE2, NODE1), Path::TunnelToStack),
        (
            "TTL 1, so it expires here",
            to_a(REMOTE_POD, tcp(1, 2)).with(|packet| packet.ttl = 1),
            Path::TunnelToStack,
        ),
    ];
    for (what, packet, path) in table {
        node.check_on_wire(what, "up0-p", &tunnel().around(&inner(&packet)), Some(path.name()));
    }
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::new(Mode::Vxlan);
    let good = to_a(REMOTE_POD, tcp(40000, 80)).with(|packet| packet.payload.clear());
    let frame = inner(&good);
    let mut arp_inside = frame.clone();
    arp_inside[12..14].copy_from_slice(&[8, 6]);
    let mut wrong = frame.clone();
    wrong[ETHERNET] = 0x44;
    let table = [
        ("another node's pod", inner(&to_a(POD_OF_NODE3, tcp(1, 2))), Reason::InnerSourceNotOwned),
        ("a pod of this node", inner(&to_a(POD_B, tcp(1, 2))), Reason::InnerSourceNotOwned),
        ("the world", inner(&to_a(WORLD, tcp(1, 2))), Reason::InnerSourceNotOwned),
        ("an error about the tunnel", inner(&about_the_tunnel(REMOTE_POD, NODE1)), Reason::IcmpErrorNotOwned),
        ("ARP", arp_inside, Reason::InnerProtocolUnknown),
        ("a VLAN tag", tagged(&frame), Reason::InnerProtocolUnknown),
        ("a header of 16 bytes", wrong, Reason::BadIpHeader),
        ("half a TCP header", frame[..ETHERNET + 30].to_vec(), Reason::Truncated),
        (
            "a later fragment without its first",
            inner(&to_a(REMOTE_POD, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment, packet.identification) = (false, (2, false), 0x4321);
            })),
            Reason::FragmentWithoutFirst,
        ),
    ];
    for (what, inner, reason) in table {
        node.check_on_wire(what, "up0-p", &tunnel().around(&inner), Some(reason.name()));
    }
    // The device itself refuses a frame without a whole IPv4 header.
    let half = tunnel().around(&frame[..ETHERNET + 10]);
    node.check_on_wire("half an IPv4 header", "up0-p", &half, None);
    let from_stranger = outer_fragments(STRANGER, 1, &frame);
    node.check_fragments("no node's", &from_stranger, Reason::TunnelPeerUnknown.name());
    let other_network = outer_fragments(NODE2, 2, &frame);
    node.check_fragments("another network", &other_network, Reason::TunnelVniUnknown.name());
}

/// Returns a VXLAN packet in two outer fragments. On the uplink a program parses only whole
/// packets.
fn outer_fragments(source: std::net::Ipv4Addr, vni: u32, inner: &[u8]) -> [Vec<u8>; 2] {
    let whole = Vxlan::new(source, NODE1).with(|outer| outer.vni = vni).around(inner);
    let payload = whole[ETHERNET + 20..].to_vec();
    let part = |fragment, bytes: &[u8]| {
        Packet::new(source, NODE1, Transport::None(protocol::UDP))
            .macs(UPLINK_MAC, NODE2_MAC)
            .with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, fragment);
                packet.payload = bytes.to_vec();
            })
            .build()
    };
    [part((0, true), &payload[..24]), part((3, false), &payload[24..])]
}
