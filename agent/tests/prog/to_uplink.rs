//! `to_uplink`: packets that leave for the network.

use std::net::Ipv4Addr;
use std::sync::Barrier;

use podwire_common::abi::{Flow, STATE_FIN, TRANSLATION_SNAT};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::{
    VXLAN_PORT,
    programs::{FROM_UPLINK, TO_UPLINK},
};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

fn out(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, destination, transport).macs(STRANGER_MAC, UPLINK_MAC)
}

fn translated(packet: &Packet) -> Expect {
    Expect::Stack(Path::SnatOut, packet.clone().with(|packet| packet.source = NODE1).build())
}

#[test]
fn a_pod_speaks_to_the_world_with_the_uplinks_address() {
    let table = [
        ("TCP", out(POD_A, WORLD, tcp(40000, 443))),
        ("UDP", out(POD_A, WORLD, udp(40000, 53))),
        (
            "UDP without checksum",
            out(POD_A, WORLD, Transport::Udp { source: 1, destination: 2, checksum: false }),
        ),
        ("echo", out(POD_A, WORLD, Transport::EchoRequest { identifier: 7 })),
        ("echo with identifier 0", out(POD_A, WORLD, Transport::EchoRequest { identifier: 0 })),
        ("IP options", out(POD_A, WORLD, tcp(1, 2)).with(|packet| packet.options = vec![1; 4])),
    ];
    for (what, packet) in table {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        node.check(what, TO_UPLINK, link, &packet.build(), translated(&packet));
        node.check(what, TO_UPLINK, link, &packet.build(), translated(&packet));
        let translations = node.translations();
        assert_eq!(translations.len(), 2, "{what}: both halves, once");
        for (flow, translation) in translations {
            let (ends, reply) = match flow.source == POD_A.into() {
                true => ((NODE1, WORLD), 0),
                false => ((WORLD, POD_A), 1),
            };
            let ends = (Addr::from(ends.0), Addr::from(ends.1));
            assert_eq!((translation.source, translation.destination), ends, "{what}");
            assert_eq!((translation.kind, translation.reply), (TRANSLATION_SNAT, reply), "{what}");
        }
        assert!(node.stack_flows().is_empty(), "{what}: the world's replies go up the stack anyway");
    }
}

#[test]
fn all_fragments_are_translated_alike() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let first =
        out(POD_A, WORLD, Transport::Udp { source: 1, destination: 2, checksum: true }).with(|packet| {
            (packet.dont_fragment, packet.fragment) = (false, (0, true));
        });
    node.check("the first", TO_UPLINK, link, &first.build(), translated(&first));
    let later = out(POD_A, WORLD, Transport::None(protocol::UDP)).with(|packet| {
        (packet.dont_fragment, packet.fragment) = (false, (2, false));
    });
    node.check("a later one", TO_UPLINK, link, &later.build(), translated(&later));
}

#[test]
fn a_port_that_is_taken_is_replaced() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let first = out(POD_A, WORLD, tcp(40000, 443));
    node.check("the first pod keeps its port", TO_UPLINK, link, &first.build(), translated(&first));
    let second = out(POD_B, WORLD, tcp(40000, 443));
    let ran = node.run(TO_UPLINK, link, &second.build(), 0);
    let port = u16::from_be_bytes([ran.frame[ETHERNET + 20], ran.frame[ETHERNET + 21]]);
    assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{port}");
    let expected = Packet { source: NODE1, transport: tcp(port, 443), ..second };
    assert_eq!(ran.frame, expected.build());
    let elsewhere = out(POD_B, WORLD, tcp(40000, 80));
    node.check(
        "it is free towards another port",
        TO_UPLINK,
        link,
        &elsewhere.build(),
        translated(&elsewhere),
    );
}

#[test]
fn a_closing_connection_is_marked() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let open = out(POD_A, WORLD, tcp(40000, 443));
    node.check("SYN", TO_UPLINK, link, &open.build(), translated(&open));
    let close = out(POD_A, WORLD, Transport::Tcp { source: 40000, destination: 443, flags: 0x11 });
    node.check("FIN", TO_UPLINK, link, &close.build(), translated(&close));
    assert!(node.translations().values().all(|half| half.state == STATE_FIN), "both halves have one state");
}

#[test]
fn outsiders_cannot_keep_a_pods_connection_untranslated() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let flags = |flags| Transport::Tcp { source: 40000, destination: 443, flags };
    let from_outside = Packet::new(WORLD, POD_A, tcp(443, 40000)).macs(UPLINK_MAC, STRANGER_MAC).build();
    node.check("by the pod's own address", FROM_UPLINK, link, &from_outside, Expect::Pass);
    let answer = out(POD_A, WORLD, flags(0x12));
    let untranslated = Expect::Stack(Path::Untranslated, answer.build());
    node.check("the pod's answer", TO_UPLINK, link, &answer.build(), untranslated);
    let begun = out(POD_A, WORLD, flags(0x02));
    node.check("the pod's own", TO_UPLINK, link, &begun.build(), translated(&begun));
}

#[test]
fn a_pods_packet_for_another_node_never_leaves_bare() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    for destination in [NODE2, REMOTE_POD] {
        let packet = out(POD_A, destination, tcp(40000, 6443));
        let flow =
            Flow::new(POD_A.into(), destination.into(), Be16::new(40000), Be16::new(6443), protocol::TCP);
        let expected = Vxlan::new(NODE1, NODE2)
            .with(|outer| {
                outer.source_port = flow.tunnel_source_port().get();
            })
            .around(&inner(&packet));
        let expect = Expect::Redirect(Path::StackEncapsulated, expected);
        node.check(&destination.to_string(), TO_UPLINK, link, &packet.build(), expect);
        assert!(node.stack_flows().contains(&flow.reversed()), "the reply must find conntrack");
    }
}

#[test]
fn without_a_tunnel_a_packet_for_another_node_leaves_as_it_is() {
    let mut node = Fixture::new(Mode::Direct);
    let link = node.uplink;
    let packet = out(POD_A, NODE2, tcp(40000, 6443));
    node.check("bare", TO_UPLINK, link, &packet.build(), Expect::Pass);
    assert_eq!(node.stack_flows().len(), 1, "the reply must find conntrack");
    let routed = out(REMOTE_POD, WORLD, tcp(40000, 6443)).build();
    node.check("another node's pod, sent on by a rule of the host's", TO_UPLINK, link, &routed, Expect::Pass);
}

#[test]
fn what_is_not_a_pods_passes_untouched() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let host = out(NODE1, WORLD, tcp(40000, 443)).build();
    let table = [
        ("the host's own", host.clone()),
        ("the tunnel", Vxlan::new(NODE1, NODE2).around(&inner(&out(POD_A, REMOTE_POD, tcp(1, 2))))),
        ("a VLAN tag", tagged(&host)),
        ("ARP", arp(1, UPLINK_MAC, NODE1, [0; 6], NODE2)),
        ("half a TCP header of the host's", host[..ETHERNET + 30].to_vec()),
    ];
    for (what, frame) in table {
        node.check(what, TO_UPLINK, link, &frame, Expect::Pass);
    }
    node.check_on_wire("half an IPv4 header", "up0", &host[..ETHERNET + 10], None);
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::new(Mode::Vxlan);
    let (link, no_uplink) = (node.uplink, node.pod_b);
    let good = out(POD_A, WORLD, tcp(40000, 443)).with(|packet| packet.payload.clear());
    let quote = behind_ethernet(&Packet::new(WORLD, POD_A, udp(53, 40000)).build());
    let mut wrong = good.build();
    wrong[ETHERNET] = 0x44;
    let table = [
        ("another node's pod", out(REMOTE_POD, WORLD, tcp(1, 2)).build(), Reason::PodSourceUnknown),
        ("to this node's own address", out(POD_A, NODE1, tcp(1, 2)).build(), Reason::NoNodeForDestination),
        (
            "to a dead pod",
            out(POD_A, [10, 244, 1, 99].into(), tcp(1, 2)).build(),
            Reason::NoNodeForDestination,
        ),
        ("VXLAN to the world", out(POD_A, WORLD, udp(40000, VXLAN_PORT)).build(), Reason::VxlanFromPod),
        (
            "a pod that is gone",
            out([10, 244, 1, 99].into(), WORLD, tcp(1, 2)).build(),
            Reason::PodSourceUnknown,
        ),
        (
            "AH, which authenticates the addresses",
            out(POD_A, WORLD, Transport::None(protocol::AH)).build(),
            Reason::SnatImpossible,
        ),
        (
            "an ICMP error",
            out(POD_A, WORLD, Transport::Icmp { kind: 3, code: 3, word: [0; 4] })
                .with(|packet| packet.payload = quote)
                .build(),
            Reason::SnatProtocolUnknown,
        ),
        (
            "a later fragment without its first",
            out(POD_A, WORLD, Transport::None(protocol::UDP))
                .with(|packet| {
                    (packet.dont_fragment, packet.fragment) = (false, (2, false));
                })
                .build(),
            Reason::FragmentWithoutFirst,
        ),
        ("half a TCP header", good.build()[..ETHERNET + 30].to_vec(), Reason::Truncated),
        ("a header of 16 bytes", wrong, Reason::BadIpHeader),
    ];
    for (what, frame, reason) in table {
        node.check(what, TO_UPLINK, link, &frame, Expect::Drop(reason));
    }
    let frame = good.build();
    node.check("a link without address", TO_UPLINK, no_uplink, &frame, Expect::Drop(Reason::SnatNoAddress));
}

#[test]
fn flow_is_refused_when_every_port_it_may_try_is_taken() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    // The whole range and the flow's own port belong to replies of other flows.
    for port in (SNAT_PORTS.0..=SNAT_PORTS.1).chain([40000]) {
        let taken = Flow::new(WORLD.into(), NODE1.into(), Be16::new(443), Be16::new(port), protocol::TCP);
        node.add_translation(taken);
    }
    let before = node.translations().len();
    let packet = out(POD_A, WORLD, tcp(40000, 443)).build();
    node.check("refused", TO_UPLINK, link, &packet, Expect::Drop(Reason::SnatPortsExhausted));
    assert_eq!(node.translations().len(), before, "no half of a pair is left");
}

/// Returns a million answers of a server.
fn more_flows_than_fit() -> impl Iterator<Item = Flow> {
    let ports = (0..16).flat_map(|from| (0..=u16::MAX).map(move |port| (from, port)));
    ports.map(|(from, port)| {
        Flow::new(WORLD.into(), STRANGER.into(), Be16::new(from), Be16::new(port), protocol::UDP)
    })
}

#[test]
fn when_the_table_is_full_the_flow_is_refused() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    assert!(node.fill_translations(more_flows_than_fit()), "the table has room for more entries");
    let before = node.translations().len();
    let packet = out(POD_A, WORLD, tcp(40000, 443)).build();
    node.check("refused", TO_UPLINK, link, &packet, Expect::Drop(Reason::TranslationsFull));
    assert_eq!(node.translations().len(), before, "no half of a pair is left");
    // With room for only one half, the program removes that half again.
    node.remove_one_translation();
    node.check("half a pair", TO_UPLINK, link, &packet, Expect::Drop(Reason::TranslationsFull));
    assert_eq!(node.translations().len(), before - 1, "no half of a pair is left");
}

#[test]
fn packets_of_a_new_flow_on_several_cpus_share_a_translation() {
    const ROUNDS: u16 = 3000;
    let node = Fixture::new(Mode::Vxlan);
    let barrier = Barrier::new(2);
    // A resolver sends two questions by one socket, from any CPUs on which its threads run.
    let send = || {
        let mut ran = Vec::new();
        for port in 1024..1024 + ROUNDS {
            let frame = out(POD_A, WORLD, udp(port, 53)).build();
            barrier.wait();
            ran.push(node.run(TO_UPLINK, node.uplink, &frame, 0));
        }
        ran
    };
    let (one, other) = std::thread::scope(|scope| {
        let threads = [scope.spawn(send), scope.spawn(send)];
        let [one, other] = threads.map(|thread| thread.join().unwrap());
        (one, other)
    });
    for (port, (one, other)) in (1024..).zip(one.iter().zip(&other)) {
        let expected = out(NODE1, WORLD, udp(port, 53)).build();
        assert!(one.frame == expected && other.frame == expected, "port {port}: {} {}", one.code, other.code);
    }
    assert_eq!(node.translations().len(), 2 * usize::from(ROUNDS), "one translation for each flow");
}

#[test]
fn with_a_full_table_a_pods_flow_gives_way_to_the_nodes_own() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let pods = out(POD_A, WORLD, udp(40000, 53));
    node.check("the pod's", TO_UPLINK, link, &pods.build(), translated(&pods));
    assert!(node.fill_translations(more_flows_than_fit()), "the table has room for more entries");
    let own = out(NODE1, WORLD, udp(40000, 53)).build();
    node.check("the node's", TO_UPLINK, link, &own, Expect::Pass);
    let reply = Packet::new(WORLD, NODE1, udp(53, 40000)).macs(UPLINK_MAC, STRANGER_MAC).build();
    node.check("its reply", FROM_UPLINK, link, &reply, Expect::Pass);
}
