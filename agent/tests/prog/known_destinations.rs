//! Known destinations: the host's rules have just let a connection to such a destination pass
//! unchanged. Further connections to it go past the rules from their first packet on.

use std::borrow::Borrow as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use podwire_common::abi::{self, KNOWN_FLOW_JIFFIES, STATE_FIN};
use podwire_common::flow::{FlowAddr as _, protocol};
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::family::{Address, Fields, IpPacket, Known};
use crate::fixture::*;
use crate::fixture6::{dual, make_dual};
use crate::kinds::{CLIENT, SERVER, ack, arriving, from_a, out, syn, syn_ack};
use crate::packets::*;

#[test]
fn destination_is_remembered_when_the_rules_were_asked_lately() {
    check_remembered::<Ipv4Addr>();
    check_remembered::<Ipv6Addr>();
}

fn check_remembered<A: Address>() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = dual(mode);
        let now = node.jiffies();
        let there = begin::<A>(&mut node, now);
        assert_eq!(destination_of::<A>(&node, &there), Some(node.destination::<A>(&there, now)), "{mode:?}");
    }
}

#[test]
fn where_a_connection_leads_is_not_remembered_otherwise() {
    check_not_remembered::<Ipv4Addr>();
    check_not_remembered::<Ipv6Addr>();
}

fn check_not_remembered<A: Address>() {
    let each_connection = |config: &abi::Config| abi::Config { ask: abi::ASK_EACH_CONNECTION, ..*config };
    let mut strict = Fixture::with_config(Mode::Vxlan, each_connection);
    make_dual(&mut strict);
    let now = strict.jiffies();
    let there = begin::<A>(&mut strict, now);
    assert_eq!(destination_of::<A>(&strict, &there), None, "the rules must see each connection");
    drop(strict);

    let mut node = dual(Mode::Vxlan);
    let now = node.jiffies();
    begin::<A>(&mut node, now.wrapping_sub(KNOWN_FLOW_JIFFIES));
    assert_eq!(destination_of::<A>(&node, &there), None, "the rules were asked too long ago");

    node.forget_recorded();
    let datagrams = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::UDP);
    node.run(TO_UPLINK, node.uplink, &out(A::POD_A, A::WORLD, udp(CLIENT, SERVER)).build(), 0);
    node.run(FROM_UPLINK, node.uplink, &arriving(A::WORLD, A::NODE1, udp(SERVER, CLIENT)).build(), 0);
    let now = node.jiffies();
    node.set_asked(now);
    node.run(FROM_POD, node.pod_a, &from_a(A::WORLD, udp(CLIENT, SERVER)).build(), 0);
    assert_eq!(destination_of::<A>(&node, &datagrams), None, "datagrams");

    node.forget_recorded();
    node.model.non_masquerade.insert(A::either("198.51.100.0/24", "2001:db8::/64").parse().unwrap());
    let now = node.jiffies();
    begin_before::<A>(&mut node, now, Fixture::fill);
    assert_eq!(destination_of::<A>(&node, &there), None, "the pod keeps its address there by now");
}

#[test]
fn connection_to_a_known_destination_goes_past_the_stack() {
    check_past_stack::<Ipv4Addr>();
    check_past_stack::<Ipv6Addr>();
}

fn check_past_stack<A: Address>() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = dual(mode);
        let there = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::TCP);
        let known = node.know_destination::<A>(&there);
        let fin = Transport::Tcp { source: CLIENT, destination: SERVER, flags: 0x11 };
        let what = ["first packet", "first packet once more", "a packet", "last packet"];
        for (what, transport) in
            what.into_iter().zip([syn(CLIENT, SERVER), syn(CLIENT, SERVER), ack(CLIENT, SERVER), fin])
        {
            let sent = from_a(A::WORLD, transport);
            let leaving = sent.clone().set(|fields| {
                (*fields.source, *fields.ttl) = (A::NODE1, *fields.ttl - 1);
            });
            let expect = Expect::Redirect(Path::SnatOut, leaving.build());
            node.check(&format!("{mode:?}: {what}"), FROM_POD, node.pod_a, &sent.build(), expect);
        }
        let translations = node.translations();
        assert_eq!(translations.len(), 2, "{mode:?}");
        let half = translations[&there];
        assert!(translations.contains_key(&half.other_half(protocol::TCP)), "{mode:?}");
        for half in translations.values() {
            assert_eq!((half.past_stack, half.asked), (1, known.asked), "{mode:?}");
            assert_eq!((half.ifindex, half.state), (node.uplink, STATE_FIN), "{mode:?}");
        }
        let answer = arriving(A::WORLD, A::NODE1, syn_ack(SERVER, CLIENT));
        let delivered = answer.clone().on_link(POD_A_MAC, HOST_A_MAC).set(|fields| {
            (*fields.destination, *fields.ttl) = (A::POD_A, *fields.ttl - 1);
        });
        let expect = Expect::Redirect(Path::SnatIn, delivered.build());
        node.check(&format!("{mode:?}: answer"), FROM_UPLINK, node.uplink, &answer.build(), expect);
    }
}

/// A host on the uplink's link pretends to be the pod, in the middle of the pod's flow.
#[test]
fn pods_side_of_a_past_stack_flow_is_refused_on_an_uplink() {
    check_forged::<Ipv4Addr>();
    check_forged::<Ipv6Addr>();
}

fn check_forged<A: Address>() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = dual(mode);
        let now = node.jiffies();
        begin::<A>(&mut node, now);
        let forged = arriving(A::POD_A, A::WORLD, ack(CLIENT, SERVER)).build();
        let expect = Expect::Drop(Reason::PodSourceNotFromNode);
        node.check(&format!("{mode:?}"), FROM_UPLINK, node.uplink, &forged, expect);
    }
}

#[test]
fn known_destination_gets_another_port_where_its_own_is_taken() {
    check_taken_port::<Ipv4Addr>();
    check_taken_port::<Ipv6Addr>();
}

fn check_taken_port<A: Address>() {
    let mut node = dual(Mode::Vxlan);
    let there = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::TCP);
    node.know_destination::<A>(&there);
    node.add_translation(flow_of(A::WORLD, A::NODE1, (SERVER, CLIENT), protocol::TCP));
    node.run(FROM_POD, node.pod_a, &from_a(A::WORLD, syn(CLIENT, SERVER)).build(), 0);
    let port = node.translations()[&there].source_port.get();
    assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{port}");
}

#[test]
fn other_packets_than_the_pods_connection_are_seen_by_rules() {
    check_others::<Ipv4Addr>();
    check_others::<Ipv6Addr>();
}

fn check_others<A: Address>() {
    let mut node = dual(Mode::Vxlan);
    let there = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::TCP);
    let pod = node.pod_a;
    let plain = from_a(A::WORLD, syn(CLIENT, SERVER));
    let flags = |flags| Transport::Tcp { source: CLIENT, destination: SERVER, flags };
    let with = |change: &dyn Fn(Fields<'_, A>)| plain.clone().set(change);
    let from_b = A::Packet::new(A::POD_B, A::WORLD, syn(CLIENT, SERVER)).on_link(HOST_B_MAC, POD_B_MAC);
    let large = 1500 - A::Packet::HEADER - 20 + 1;
    let mut packets = vec![
        ("another pod", node.pod_b, from_b),
        ("another link", node.pod_b, plain.clone().on_link(HOST_B_MAC, POD_A_MAC)),
        ("another link address", node.pod_a, plain.clone().on_link(HOST_A_MAC, STRANGER_MAC)),
        ("TTL 1", node.pod_a, with(&|fields| *fields.ttl = 1)),
        ("larger than the path takes", node.pod_a, with(&|fields| *fields.payload = vec![0; large])),
        ("another port", node.pod_a, from_a(A::WORLD, syn(CLIENT, SERVER + 1))),
        ("another address", node.pod_a, from_a(A::STRANGER, syn(CLIENT, SERVER))),
        ("UDP", node.pod_a, from_a(A::WORLD, udp(CLIENT, SERVER))),
        ("a packet of a connection that is not known", node.pod_a, from_a(A::WORLD, ack(CLIENT, SERVER))),
        ("an answer", node.pod_a, from_a(A::WORLD, syn_ack(CLIENT, SERVER))),
        ("SYN and FIN", node.pod_a, from_a(A::WORLD, flags(0x03))),
        ("SYN and RST", node.pod_a, from_a(A::WORLD, flags(0x06))),
    ];
    let odd = plain.odd((CLIENT, SERVER)).into_iter();
    packets.extend(odd.map(|(what, packet)| (what, node.pod_a, packet)));
    for (what, link, packet) in packets {
        assert_is_judged(&mut node, what, link, &packet, |node| {
            node.know_destination::<A>(&there);
        });
    }
    type Change<A> = fn(&mut Known<A>);
    let changes: [(&str, Change<A>); 3] = [
        ("it has expired", |known| known.asked = known.asked.wrapping_sub(KNOWN_FLOW_JIFFIES)),
        ("another epoch", |known| known.epochs ^= 1),
        ("another flow has its element now", |known| {
            let other = flow_of(A::POD_A, A::WORLD, (1, SERVER), protocol::TCP);
            known.key = *A::Stored::key(&other).borrow();
        }),
    ];
    for (what, change) in changes {
        assert_is_judged(&mut node, what, pod, &plain, |node| {
            let mut known = node.know_destination::<A>(&there);
            change(&mut known);
            A::insert_known(&mut node.loaded.maps, &A::Stored::destination_key(&there), known);
        });
    }
    type Translated = fn(&mut abi::Translation);
    let translations: [(&str, Translated); 3] = [
        ("the rules have changed it", |half| half.past_stack = 0),
        ("it leaves by another uplink", |half| half.ifindex += 1),
        ("a hostPort's reply", |half| half.kind = abi::TRANSLATION_HOST_PORT),
    ];
    for (what, change) in translations {
        for transport in [syn(CLIENT, SERVER), ack(CLIENT, SERVER)] {
            let packet = from_a(A::WORLD, transport);
            assert_is_judged(&mut node, what, pod, &packet, |node| {
                begin::<A>(node, 0);
                for (flow, mut half) in node.translations() {
                    change(&mut half);
                    node.loaded.maps.translations.insert(flow, half, 0).unwrap();
                }
                node.know_destination::<A>(&there);
            });
        }
    }
}

/// Asserts that a program does the same with a packet whether or not something is known.
#[track_caller]
fn assert_is_judged(
    node: &mut Fixture,
    what: &str,
    link: u32,
    packet: &impl IpPacket,
    know: impl Fn(&mut Fixture),
) {
    let mut seen = Vec::new();
    for is_known in [true, false] {
        node.forget_recorded();
        know(node);
        if !is_known {
            node.forget_known();
        }
        let before = node.counters();
        let ran = node.run(FROM_POD, link, &packet.build(), 0);
        let mut counted = node.counters();
        counted.retain(|name, count| before.get(name) != Some(count));
        seen.push((ran.code, hex(&ran.frame), counted.into_keys().collect::<Vec<_>>()));
    }
    assert_eq!(seen[0], seen[1], "{what}");
}

/// Begins a connection of pod A to the world, up to its third packet. `asked` is when the host's
/// rules were asked about it.
fn begin<A: Address>(node: &mut Fixture, asked: u32) -> abi::Flow {
    begin_before::<A>(node, asked, |_| ())
}

/// Like [`begin`], with an event before the third packet.
fn begin_before<A: Address>(node: &mut Fixture, asked: u32, happens: impl FnOnce(&mut Fixture)) -> abi::Flow {
    node.run(TO_UPLINK, node.uplink, &out(A::POD_A, A::WORLD, syn(CLIENT, SERVER)).build(), 0);
    node.run(FROM_UPLINK, node.uplink, &arriving(A::WORLD, A::NODE1, syn_ack(SERVER, CLIENT)).build(), 0);
    node.set_asked(asked);
    happens(node);
    node.run(FROM_POD, node.pod_a, &from_a(A::WORLD, ack(CLIENT, SERVER)).build(), 0);
    flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::TCP)
}

fn destination_of<A: Address>(node: &Fixture, flow: &abi::Flow) -> Option<Known<A>> {
    A::known(&node.loaded.maps, &A::Stored::destination_key(flow))
}
