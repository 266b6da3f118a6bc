//! `to_pod`: packets of the host stack to a pod.

use std::net::Ipv4Addr;

use podwire_common::abi::Flow;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::TO_POD;
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

/// Returns a frame of the stack for pod A. On a link without neighbours both addresses are the
/// link's own.
fn to_a(source: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, POD_A, transport).macs(HOST_A_MAC, HOST_A_MAC)
}

fn reply(destination: Ipv4Addr, ports: (u16, u16), protocol: u8) -> Flow {
    Flow::new(POD_A.into(), destination.into(), Be16::new(ports.0), Be16::new(ports.1), protocol)
}

fn delivered(packet: &Packet) -> Expect {
    Expect::Stack(Path::FromStack, packet.clone().macs(POD_A_MAC, HOST_A_MAC).build())
}

#[test]
fn replies_that_could_go_direct_are_recorded() {
    let table = [
        ("a pod here, TCP", to_a(POD_B, tcp(40000, 80)), reply(POD_B, (80, 40000), protocol::TCP)),
        (
            "a pod elsewhere, UDP",
            to_a(REMOTE_POD, udp(40000, 53)),
            reply(REMOTE_POD, (53, 40000), protocol::UDP),
        ),
        ("another node", to_a(NODE2, tcp(40000, 80)), reply(NODE2, (80, 40000), protocol::TCP)),
        (
            "an echo",
            to_a(POD_B, Transport::EchoRequest { identifier: 7 }),
            reply(POD_B, (0, 7), protocol::ICMP),
        ),
        ("no ports", to_a(POD_B, Transport::None(47)), reply(POD_B, (0, 0), 47)),
        (
            "IP options",
            to_a(POD_B, tcp(1, 2)).with(|p| p.options = vec![1; 4]),
            reply(POD_B, (2, 1), protocol::TCP),
        ),
        (
            "a first fragment",
            to_a(POD_B, udp(3, 4)).with(|p| {
                (p.dont_fragment, p.fragment) = (false, (0, true));
            }),
            reply(POD_B, (4, 3), protocol::UDP),
        ),
    ];
    for (what, packet, flow) in table {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.pod_a;
        node.check(what, TO_POD, link, &packet.build(), delivered(&packet));
        assert_eq!(node.stack_flows(), [flow], "{what}");
    }
}

#[test]
fn replies_that_go_up_the_stack_anyway_are_not_recorded() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let quote = behind_ethernet(&Packet::new(POD_A, POD_B, tcp(1, 2)).build());
    let table = [
        ("the world", to_a(WORLD, tcp(443, 40000))),
        ("this node", to_a(NODE1, tcp(40000, 80))),
        ("the gateway", to_a(GATEWAY, Transport::EchoRequest { identifier: 7 })),
        ("a service", to_a([10, 96, 0, 1].into(), tcp(443, 40000))),
        (
            "an ICMP error marks nothing",
            to_a(POD_B, Transport::Icmp { kind: 3, code: 3, word: [0; 4] })
                .with(|packet| packet.payload = quote),
        ),
        (
            "a later fragment has no ports",
            to_a(POD_B, Transport::None(protocol::UDP)).with(|packet| {
                (packet.dont_fragment, packet.fragment) = (false, (2, false));
            }),
        ),
    ];
    for (what, packet) in table {
        node.check(what, TO_POD, link, &packet.build(), delivered(&packet));
        assert!(node.stack_flows().is_empty(), "{what}");
    }
}

#[test]
fn what_is_not_for_the_pod_is_left_alone() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let other = Packet::new(WORLD, POD_B, tcp(1, 2)).macs(HOST_A_MAC, HOST_A_MAC).build();
    node.check("another pod's", TO_POD, link, &other, Expect::Pass);
    let arp = arp(1, HOST_A_MAC, NODE1, [0; 6], POD_A);
    node.check("ARP", TO_POD, link, &arp, Expect::Pass);
    let good = to_a(WORLD, tcp(1, 2)).build();
    node.check("a VLAN tag", TO_POD, link, &tagged(&good), Expect::Pass);
    node.check_on_wire("half an IPv4 header", "pwa", &good[..ETHERNET + 10], None);
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.pod_a;
    let good = to_a(WORLD, tcp(1, 2)).with(|packet| packet.payload.clear()).build();
    node.check("half a TCP header", TO_POD, link, &good[..ETHERNET + 30], Expect::Drop(Reason::Truncated));
    let mut wrong = good;
    wrong[ETHERNET] = 0x44;
    node.check("a header of 16 bytes", TO_POD, link, &wrong, Expect::Drop(Reason::BadIpHeader));
}
