//! SNAT: the owner of each port, flows that keep their source, and ICMP errors about translated
//! flows.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use podwire_common::abi::{
    Flow, STATE_ESTABLISHED, STATE_FIN, STATE_OUTSIDE_RESET, STATE_REPLIED, STATE_REPLY_FIN,
    TRANSLATION_HOST, TRANSLATION_RESERVATION, TRANSLATION_SNAT, Translation,
};
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::packets::*;

const OWN: u16 = 40000;

fn out(source: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, WORLD, transport).macs(STRANGER_MAC, UPLINK_MAC)
}

fn back(source: Ipv4Addr, transport: Transport) -> Packet {
    Packet::new(source, NODE1, transport).macs(UPLINK_MAC, STRANGER_MAC)
}

/// Returns an ICMP error that quotes at most this many bytes of a packet.
fn about(quoted: &Packet, bytes: usize) -> (Transport, Vec<u8>) {
    let quote = behind_ethernet(&quoted.build());
    (Transport::Icmp { kind: 3, code: 4, word: [0, 0, 5, 0] }, quote[..quote.len().min(bytes)].to_vec())
}

fn to_a_group(packet: &mut Packet) {
    packet.destination = Ipv4Addr::new(224, 0, 0, 5);
}

/// Returns the source port of a frame without IP options.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[ETHERNET + 20], frame[ETHERNET + 21]])
}

/// Returns exchanges: name, request, answer.
fn exchanges() -> [(&'static str, Transport, Transport); 4] {
    let unsummed = |source, destination| Transport::Udp { source, destination, checksum: false };
    [
        ("TCP", tcp(OWN, 443), Transport::Tcp { source: 443, destination: OWN, flags: 0x12 }),
        ("UDP", udp(OWN, 53), udp(53, OWN)),
        ("UDP without checksum", unsummed(OWN, 53), unsummed(53, OWN)),
        ("echo", Transport::EchoRequest { identifier: 7 }, Transport::EchoReply { identifier: 7 }),
    ]
}

#[test]
fn an_error_from_the_world_reaches_the_pod_in_its_own_terms() {
    for (what, request, _) in exchanges() {
        // The error quotes the whole packet, or no more of it than RFC 792 requires.
        for bytes in [usize::MAX, 28] {
            let mut node = Fixture::new(Mode::Vxlan);
            let link = node.uplink;
            let sent = out(POD_A, request.clone());
            node.run(TO_UPLINK, link, &sent.build(), 0);
            let (transport, quote) = about(&out(NODE1, request.clone()), bytes);
            let error = back(STRANGER, transport.clone()).with(|packet| packet.payload = quote);
            let (_, quote) = about(&sent, bytes);
            let expected = Packet { destination: POD_A, payload: quote, ..error.clone() };
            let expect = Expect::Stack(Path::SnatIn, expected.build());
            node.check(&format!("{what}, {bytes} bytes"), FROM_UPLINK, link, &error.build(), expect);
        }
    }
}

#[test]
fn an_error_to_whom_it_does_not_quote_is_not_translated() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    node.run(TO_UPLINK, link, &out(POD_A, udp(OWN, 53)).build(), 0);
    let (transport, quote) = about(&out(NODE1, udp(OWN, 53)), usize::MAX);
    for destination in [GATEWAY, Ipv4Addr::new(192, 0, 2, 1)] {
        let error = back(STRANGER, transport.clone())
            .with(|packet| (packet.destination, packet.payload) = (destination, quote.clone()));
        node.check(&destination.to_string(), FROM_UPLINK, link, &error.build(), Expect::Pass);
    }
    // The node's own error goes to another host of the world than the quoted one.
    let (transport, quote) = about(&Packet::new(WORLD, POD_A, udp(53, OWN)), usize::MAX);
    let error = out(NODE1, transport).with(|packet| (packet.destination, packet.payload) = (STRANGER, quote));
    node.check("the node's own", TO_UPLINK, link, &error.build(), Expect::Pass);
}

#[test]
fn an_error_by_another_uplink_ends_no_translation() {
    let mut node = Fixture::new(Mode::Vxlan);
    let (link, other) = (node.uplink, node.pod_b);
    node.run(TO_UPLINK, link, &out(POD_A, udp(OWN, 53)).build(), 0);
    let there = node.translations();
    let (transport, quote) = about(&Packet::new(WORLD, POD_A, udp(53, OWN)), usize::MAX);
    let error = out(POD_A, transport).with(|packet| packet.payload = quote);
    let (_, quote) = about(&Packet::new(WORLD, NODE1, udp(53, OWN)), usize::MAX);
    let expected = Packet { source: NODE1, payload: quote, ..error.clone() };
    let expect = Expect::Stack(Path::SnatOut, expected.build());
    node.check("by another uplink", TO_UPLINK, other, &error.build(), expect);
    assert_eq!(node.translations(), there);
}

#[test]
fn error_about_an_answer_reaches_the_world_in_its_terms() {
    for (what, request, answer) in exchanges() {
        // The sender is the pod itself, or the node when its route to the pod has too small an MTU.
        for (sender, seen_as, path) in [(POD_A, NODE1, Path::SnatOut), (NODE1, NODE1, Path::HostSnatOut)] {
            let mut node = Fixture::new(Mode::Vxlan);
            let link = node.uplink;
            node.run(TO_UPLINK, link, &out(POD_A, request.clone()).build(), 0);
            let (transport, quote) = about(&Packet::new(WORLD, POD_A, answer.clone()), usize::MAX);
            let error = out(sender, transport).with(|packet| packet.payload = quote);
            let (_, quote) = about(&Packet::new(WORLD, NODE1, answer.clone()), usize::MAX);
            let expected = Packet { source: seen_as, payload: quote, ..error.clone() };
            let expect = Expect::Stack(path, expected.build());
            node.check(&format!("{what}, from {sender}"), TO_UPLINK, link, &error.build(), expect);
        }
    }
}

#[test]
fn second_flow_of_the_host_gives_its_port_way_and_regains_it() {
    for (what, request, answer) in exchanges() {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        node.run(TO_UPLINK, link, &out(POD_A, request.clone()).build(), 0);
        let host = out(NODE1, request.clone());
        let ran = node.run(TO_UPLINK, link, &host.build(), 0);
        let moved = node
            .translations()
            .into_iter()
            .find(|(_, half)| half.kind == TRANSLATION_HOST && half.reply == 0);
        let (flow, half) = moved.unwrap_or_else(|| panic!("{what}: the host's flow keeps its port"));
        assert_eq!(flow.source, NODE1.into());
        let port = half.source_port.get();
        assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{what}: {port}");
        let with_port = |transport: &Transport| match *transport {
            Transport::Tcp { source: 443, destination: _, flags } => {
                Transport::Tcp { source: 443, destination: port, flags }
            }
            Transport::Tcp { destination, flags, .. } => Transport::Tcp { source: port, destination, flags },
            Transport::Udp { source: 53, checksum, .. } => {
                Transport::Udp { source: 53, destination: port, checksum }
            }
            Transport::Udp { destination, checksum, .. } => {
                Transport::Udp { source: port, destination, checksum }
            }
            Transport::EchoRequest { .. } => Transport::EchoRequest { identifier: port },
            Transport::EchoReply { .. } => Transport::EchoReply { identifier: port },
            _ => unreachable!("no exchange has it"),
        };
        let expected = Packet { transport: with_port(&request), ..host.clone() };
        assert_eq!(ran.frame, expected.build(), "{what}");
        let reply = back(WORLD, with_port(&answer));
        let expected = Packet { transport: answer.clone(), ..reply.clone() };
        node.check(what, FROM_UPLINK, link, &reply.build(), Expect::Stack(Path::SnatIn, expected.build()));
        // The replies to the pod's flow still go to the pod.
        let reply = back(WORLD, answer);
        let expected = Packet { destination: POD_A, ..reply.clone() };
        node.check(what, FROM_UPLINK, link, &reply.build(), Expect::Stack(Path::SnatIn, expected.build()));
    }
}

#[test]
fn what_host_rules_translated_is_reserved_and_untouched() {
    for (what, request, answer) in exchanges() {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        node.check(what, TO_UPLINK, link, &out(NODE1, request.clone()).build(), Expect::Pass);
        let translations = node.translations();
        assert_eq!(translations.len(), 1, "{what}");
        assert!(translations.values().all(|half| half.kind == TRANSLATION_RESERVATION && half.reply == 1));
        node.check(what, FROM_UPLINK, link, &back(WORLD, answer).build(), Expect::Pass);
        node.check(what, TO_UPLINK, link, &out(NODE1, request.clone()).build(), Expect::Pass);
        let states: BTreeSet<_> =
            node.translations().into_values().map(|half| half.state & STATE_REPLIED).collect();
        // A TCP SYN begins the flow again.
        assert_eq!(states, BTreeSet::from([if what == "TCP" { 0 } else { STATE_REPLIED }]), "{what}");
        let ran = node.run(TO_UPLINK, link, &out(POD_A, request.clone()).build(), 0);
        let same = out(NODE1, request).build();
        assert_ne!(ran.frame, same, "{what}: the pod gets another port");
    }
    // A packet makes no reservation if it begins no flow, or if its source is not an address of the
    // node.
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    for (what, packet) in [
        ("a reset", out(NODE1, Transport::Tcp { source: OWN, destination: 443, flags: 4 })),
        ("an answer", out(NODE1, Transport::Tcp { source: OWN, destination: 443, flags: 0x12 })),
        ("an echo's answer", out(NODE1, Transport::EchoReply { identifier: 7 })),
        ("a NodePort's answer", out(NODE1, tcp(NODE_PORTS.0, 443))),
        ("the tunnel", out(NODE1, udp(OWN, VXLAN_PORT))),
        ("a stranger's packet that the node routes", out(STRANGER, tcp(OWN, 443))),
        ("an OSPF hello to its group", out(NODE1, Transport::None(89)).with(to_a_group)),
    ] {
        node.check(what, TO_UPLINK, link, &packet.build(), Expect::Pass);
        assert!(node.translations().is_empty(), "{what}");
    }
}

#[test]
fn ports_that_are_kept_for_others_are_given_to_nobody() {
    for own in [NODE_PORTS.0, NODE_PORTS.1, VXLAN_PORT] {
        let mut node = Fixture::new(Mode::Vxlan);
        let link = node.uplink;
        for transport in [tcp(own, 443), udp(own, 53)] {
            let ran = node.run(TO_UPLINK, link, &out(POD_A, transport).build(), 0);
            assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&source_port(&ran.frame)), "{own}");
        }
        // An ICMP identifier is not a port, so it stays.
        let echo = out(POD_A, Transport::EchoRequest { identifier: own });
        let expected = Packet { source: NODE1, ..echo.clone() };
        node.check("echo", TO_UPLINK, link, &echo.build(), Expect::Stack(Path::SnatOut, expected.build()));
    }
}

#[test]
fn a_flow_that_was_begun_outside_keeps_the_pods_address() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for (what, request, answer) in exchanges() {
            let mut node = Fixture::new(mode);
            let link = node.uplink;
            let request = Packet::new(WORLD, POD_A, request).macs(UPLINK_MAC, STRANGER_MAC);
            node.check(what, FROM_UPLINK, link, &request.build(), Expect::Pass);
            let answer = out(POD_A, answer);
            let expect = Expect::Stack(Path::Untranslated, answer.build());
            node.check(what, TO_UPLINK, link, &answer.build(), expect);
            assert!(node.translations().is_empty(), "{what}");
            // The pod itself begins a flow to another port of the same host.
            let own = out(POD_A, tcp(OWN, 8443));
            let expected = Packet { source: NODE1, ..own.clone() };
            node.check(what, TO_UPLINK, link, &own.build(), Expect::Stack(Path::SnatOut, expected.build()));
        }
        // A pod can also answer in a protocol that cannot be translated.
        let mut node = Fixture::new(mode);
        let link = node.uplink;
        let answer = out(POD_A, Transport::None(protocol::AH)).build();
        node.check("AH", TO_UPLINK, link, &answer, Expect::Drop(Reason::SnatImpossible));
        let request = Packet::new(WORLD, POD_A, Transport::None(protocol::AH)).macs(UPLINK_MAC, STRANGER_MAC);
        node.check("AH", FROM_UPLINK, link, &request.build(), Expect::Pass);
        node.check("AH", TO_UPLINK, link, &answer.clone(), Expect::Stack(Path::Untranslated, answer));
    }
}

#[test]
fn a_flow_begun_outside_is_known_until_it_is_idle_too_long() {
    // Seconds as `idle_timeout` has them for established flows.
    for (what, request, answer, timeout) in [
        ("TCP", tcp(443, OWN), Transport::Tcp { source: OWN, destination: 443, flags: 0x10 }, 7440),
        ("UDP", udp(443, OWN), udp(OWN, 443), 120),
    ] {
        for (idle, is_known) in [(timeout - 5, true), (timeout + 5, false)] {
            let mut node = Fixture::new(Mode::Vxlan);
            let link = node.uplink;
            let request = Packet::new(WORLD, POD_A, request.clone()).macs(UPLINK_MAC, STRANGER_MAC);
            node.check(what, FROM_UPLINK, link, &request.build(), Expect::Pass);
            node.age_inbound_flows(Duration::from_secs(idle));
            let answer = out(POD_A, answer.clone());
            let expected = match is_known {
                true => Expect::Stack(Path::Untranslated, answer.build()),
                false => Expect::Stack(Path::SnatOut, Packet { source: NODE1, ..answer.clone() }.build()),
            };
            node.check(&format!("{what}, idle for {idle} s"), TO_UPLINK, link, &answer.build(), expected);
        }
    }
}

#[test]
fn excluded_networks_see_the_pods_address_and_others_the_nodes() {
    let mut node = Fixture::new(Mode::Vxlan);
    // IPv4 addresses have an IPv6 form in the table. An exclusion of all IPv6 must leave them alone.
    node.model.non_masquerade = ["198.51.100.0/24", "::/0"].map(|text| text.parse().unwrap()).into();
    node.fill();
    let link = node.uplink;
    let packet = Packet::new(POD_A, WORLD, tcp(OWN, 80)).macs(STRANGER_MAC, UPLINK_MAC).build();
    let expect = Expect::Stack(Path::Untranslated, packet.clone());
    node.check("excluded", TO_UPLINK, link, &packet, expect);
    for (what, destination) in [("beside it", [198, 51, 101, 1]), ("link-local", [169, 254, 169, 254])] {
        let sent = Packet::new(POD_A, destination.into(), tcp(OWN, 80)).macs(STRANGER_MAC, UPLINK_MAC);
        let expected = Packet { source: NODE1, ..sent.clone() };
        node.check(what, TO_UPLINK, link, &sent.build(), Expect::Stack(Path::SnatOut, expected.build()));
    }
}

#[test]
fn both_halves_tell_one_state_whichever_direction_changes_it() {
    let node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    let flags = |source, destination, flags| Transport::Tcp { source, destination, flags };
    const OPEN: u8 = STATE_REPLIED | STATE_ESTABLISHED;
    let steps = [
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x02)), 0),
        (FROM_UPLINK, back(WORLD, flags(443, OWN, 0x12)), STATE_REPLIED),
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x10)), OPEN),
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x02)), OPEN),
        (FROM_UPLINK, back(WORLD, flags(443, OWN, 0x04)), OPEN | STATE_OUTSIDE_RESET),
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x10)), OPEN),
        (FROM_UPLINK, back(WORLD, flags(443, OWN, 0x11)), OPEN | STATE_REPLY_FIN),
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x11)), OPEN | STATE_REPLY_FIN | STATE_FIN),
        (TO_UPLINK, out(POD_A, flags(OWN, 443, 0x02)), 0),
    ];
    for (program, packet, state) in steps {
        node.run(program, link, &packet.build(), 0);
        let halves = node.translations();
        assert_eq!(halves.len(), 2);
        assert!(halves.values().all(|half| half.state == state), "{state:#b}: {halves:?}");
        let times: BTreeSet<_> = halves.values().map(|half| half.last_seen).collect();
        assert_eq!(times.len(), 1, "both halves have the same time");
    }
}

#[test]
fn with_all_ports_taken_a_closed_connection_gives_up_its_own() {
    let mut node = Fixture::new(Mode::Vxlan);
    let link = node.uplink;
    // Closed connections hold all ports. This pod's connections have the even ports. Another pod's
    // have the odd ports and the flow's own port.
    let own = 50_001;
    for port in (SNAT_PORTS.0..=SNAT_PORTS.1).chain([own]) {
        let pod = if port % 2 == 0 { POD_A } else { POD_B };
        node.add_closed(pod, port, WORLD, 443);
    }
    let before = node.translations().len();
    let ran = node.run(TO_UPLINK, link, &out(POD_A, tcp(own, 443)).build(), 0);
    let port = source_port(&ran.frame);
    assert_eq!(ran.frame, Packet { transport: tcp(port, 443), ..out(NODE1, tcp(own, 443)) }.build());
    let translations = node.translations();
    assert_eq!(translations.len(), before, "the new pair replaces one pair");
    let reply = Flow::new(WORLD.into(), NODE1.into(), Be16::new(443), Be16::new(port), protocol::TCP);
    let half: &Translation = &translations[&reply];
    assert_eq!((half.destination_port.get(), half.kind, half.state), (own, TRANSLATION_SNAT, 0));
    assert_eq!(
        port % 2,
        0,
        "not the same pod's port: a server that still knows it expects that pod's later timestamps"
    );
    for (flow, half) in &translations {
        let other = &translations[&half.other_half(flow.protocol)];
        assert_eq!(&other.other_half(flow.protocol), flow, "no half is alone");
    }
}
