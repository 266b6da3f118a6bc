//! SNAT for every kind of protocol: with ports, with fixed ports, without ports, and without SNAT.

use std::net::Ipv4Addr;

use podwire_common::abi::{TRANSLATION_RESERVATION, TRANSLATION_SNAT};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

const OWN: u16 = 40000;

fn out(source: Ipv4Addr, transport: &Transport) -> Packet {
    Packet::new(source, WORLD, transport.clone()).macs(STRANGER_MAC, UPLINK_MAC)
}

fn back(transport: &Transport) -> Packet {
    Packet::new(WORLD, NODE1, transport.clone()).macs(UPLINK_MAC, STRANGER_MAC)
}

fn timestamp(kind: u8, identifier: u8) -> Transport {
    Transport::Icmp { kind, code: 0, word: [0, identifier, 0, 1] }
}

/// Returns requests and replies of protocols with ports or identifiers that SNAT may change.
fn changeable() -> [(&'static str, Transport, Transport); 2] {
    [
        (
            "UDP-Lite",
            Transport::UdpLite { source: OWN, destination: 5000 },
            Transport::UdpLite { source: 5000, destination: OWN },
        ),
        ("ICMP timestamp", timestamp(13, 7), timestamp(14, 7)),
    ]
}

/// Returns the same for protocols without ports, or with ports that SNAT cannot change.
fn fixed() -> [(&'static str, Transport, Transport); 4] {
    let alike = |what, number| (what, Transport::None(number), Transport::None(number));
    [
        (
            "SCTP",
            Transport::Sctp { source: OWN, destination: 3868 },
            Transport::Sctp { source: 3868, destination: OWN },
        ),
        alike("GRE", 47),
        alike("ESP", 50),
        alike("IP in IP", 4),
    ]
}

#[test]
fn each_protocol_reaches_the_world_and_is_answered() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for (what, request, answer) in changeable().into_iter().chain(fixed()) {
            let mut node = Fixture::new(mode);
            let link = node.uplink;
            let sent = out(POD_A, &request);
            let expected = Packet { source: NODE1, ..sent.clone() };
            node.check(what, TO_UPLINK, link, &sent.build(), Expect::Stack(Path::SnatOut, expected.build()));
            let reply = back(&answer);
            let expected = Packet { destination: POD_A, ..reply.clone() };
            node.check(
                what,
                FROM_UPLINK,
                link,
                &reply.build(),
                Expect::Stack(Path::SnatIn, expected.build()),
            );
            let unrelated = Packet { source: STRANGER, ..reply };
            node.check(what, FROM_UPLINK, link, &unrelated.build(), Expect::Pass);
        }
    }
}

#[test]
fn an_error_about_any_protocol_reaches_the_pod_in_its_terms() {
    for (what, request, _) in changeable().into_iter().chain(fixed()) {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        let sent = out(POD_A, &request);
        node.run(TO_UPLINK, link, &sent.build(), 0);
        let quote = |of: &Packet| {
            let quoted = behind_ethernet(&of.build());
            quoted[..quoted.len().min(28)].to_vec()
        };
        let needed = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 0] };
        let error = Packet::new(STRANGER, NODE1, needed).macs(UPLINK_MAC, STRANGER_MAC);
        let expected = Packet { destination: POD_A, payload: quote(&sent), ..error.clone() };
        let error = Packet { payload: quote(&out(NODE1, &request)), ..error };
        node.check(what, FROM_UPLINK, link, &error.build(), Expect::Stack(Path::SnatIn, expected.build()));
    }
}

#[test]
fn a_second_pod_gets_another_port_where_there_is_one() {
    for (what, request, _) in changeable() {
        let node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        for pod in [POD_A, POD_B] {
            node.run(TO_UPLINK, link, &out(pod, &request).build(), 0);
        }
        let ports = node.translations().into_iter().filter(|(_, half)| half.reply == 0);
        let ports: Vec<u16> = ports.map(|(_, half)| half.source_port.get()).collect();
        assert!(ports.len() == 2 && ports[0] != ports[1], "{what}: {ports:?}");
    }
}

#[test]
fn what_cannot_change_has_one_owner() {
    for (what, request, answer) in fixed() {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        node.run(TO_UPLINK, link, &out(POD_A, &request).build(), 0);
        let second = out(POD_B, &request);
        node.check(what, TO_UPLINK, link, &second.build(), Expect::Drop(Reason::SnatPortsExhausted));
        assert_eq!(node.translations().len(), 2, "{what}: nothing is left of the second");
        // Towards another server the port is free.
        let elsewhere = Packet { destination: STRANGER, ..second };
        let expected = Packet { source: NODE1, ..elsewhere.clone() };
        let expect = Expect::Stack(Path::SnatOut, expected.build());
        node.check(what, TO_UPLINK, link, &elsewhere.build(), expect);
        // The node's own flow takes precedence: from now on the replies go to the node.
        node.check(what, TO_UPLINK, link, &out(NODE1, &request).build(), Expect::Pass);
        node.check(what, FROM_UPLINK, link, &back(&answer).build(), Expect::Pass);
    }
    let mut node = Fixture::new(Mode::Vxlan);
    node.run(TO_UPLINK, node.uplink, &out(POD_A, &fixed()[0].1).build(), 0);
    let other = out(POD_B, &Transport::Sctp { source: OWN + 1, destination: 3868 });
    let expected = Packet { source: NODE1, ..other.clone() };
    let expect = Expect::Stack(Path::SnatOut, expected.build());
    node.check("another port of SCTP", TO_UPLINK, node.uplink, &other.build(), expect);
}

#[test]
fn what_the_node_itself_talks_to_is_no_pods() {
    for (what, request, answer) in changeable().into_iter().chain(fixed()) {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        node.check(what, TO_UPLINK, link, &out(NODE1, &request).build(), Expect::Pass);
        let reserved: Vec<_> = node.translations().into_values().collect();
        assert!(matches!(&reserved[..], [half] if half.kind == TRANSLATION_RESERVATION), "{what}");
        node.run(TO_UPLINK, link, &out(POD_A, &request).build(), 0);
        node.check(what, FROM_UPLINK, link, &back(&answer).build(), Expect::Pass);
        let pods = node.translations().into_values().filter(|half| half.kind == TRANSLATION_SNAT).count();
        let can_change = changeable().iter().any(|(other, ..)| *other == what);
        assert_eq!(pods, if can_change { 2 } else { 0 }, "{what}");
    }
}

#[test]
fn what_cannot_be_translated_never_leaves() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let solicitation = Transport::Icmp { kind: 10, code: 0, word: [0; 4] };
    for (what, transport, reason) in [
        ("AH", Transport::None(protocol::AH), Reason::SnatImpossible),
        ("a router solicitation", solicitation, Reason::SnatProtocolUnknown),
    ] {
        node.check(what, TO_UPLINK, link, &out(POD_A, &transport).build(), Expect::Drop(reason));
        assert!(node.translations().is_empty(), "{what}");
    }
}
