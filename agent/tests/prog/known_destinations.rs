//! Known destinations: the host's rules have just let a connection to such a destination pass
//! unchanged. Further connections to it go past the rules from their first packet on.

use podwire_common::abi::{self, KNOWN_FLOW_JIFFIES, KnownFlow, STATE_FIN};
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::kinds::{CLIENT, SERVER, ack, arriving, from_a, out, syn, syn_ack};
use crate::packets::*;

#[test]
fn destination_is_remembered_when_the_rules_were_asked_lately() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let now = node.jiffies();
        let there = begin(&mut node, now);
        assert_eq!(destination_of(&node, &there), Some(node.destination(&there, now)), "{mode:?}");
    }
}

#[test]
fn where_a_connection_leads_is_not_remembered_otherwise() {
    let each_connection = |config: &abi::Config| abi::Config { ask: abi::ASK_EACH_CONNECTION, ..*config };
    let mut strict = Fixture::with_config(Mode::Vxlan, each_connection);
    add_default_route(&strict);
    let now = strict.jiffies();
    let there = begin(&mut strict, now);
    assert_eq!(destination_of(&strict, &there), None, "the rules must see each connection");
    drop(strict);

    let mut node = node(Mode::Vxlan);
    let now = node.jiffies();
    begin(&mut node, now.wrapping_sub(KNOWN_FLOW_JIFFIES));
    assert_eq!(destination_of(&node, &there), None, "the rules were asked too long ago");

    node.forget_recorded();
    let datagrams = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::UDP);
    node.run(TO_UPLINK, node.uplink, &out(POD_A, WORLD, udp(CLIENT, SERVER)).build(), 0);
    node.run(FROM_UPLINK, node.uplink, &arriving(WORLD, NODE1, udp(SERVER, CLIENT)).build(), 0);
    let now = node.jiffies();
    node.set_asked(now);
    node.run(FROM_POD, node.pod_a, &from_a(WORLD, udp(CLIENT, SERVER)).build(), 0);
    assert_eq!(destination_of(&node, &datagrams), None, "datagrams");

    node.forget_recorded();
    node.model.non_masquerade.insert("198.51.100.0/24".parse().unwrap());
    let now = node.jiffies();
    begin_before(&mut node, now, Fixture::fill);
    assert_eq!(destination_of(&node, &there), None, "the pod keeps its address there by now");
}

#[test]
fn connection_to_a_known_destination_goes_past_the_stack() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let there = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP);
        let known = node.know_destination(&there);
        let fin = Transport::Tcp { source: CLIENT, destination: SERVER, flags: 0x11 };
        let what = ["first packet", "first packet once more", "a packet", "last packet"];
        for (what, transport) in
            what.into_iter().zip([syn(CLIENT, SERVER), syn(CLIENT, SERVER), ack(CLIENT, SERVER), fin])
        {
            let sent = from_a(WORLD, transport);
            let leaving = sent.clone().with(|packet| (packet.source, packet.ttl) = (NODE1, packet.ttl - 1));
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
        let answer = arriving(WORLD, NODE1, syn_ack(SERVER, CLIENT));
        let delivered = answer.clone().macs(POD_A_MAC, HOST_A_MAC).with(|packet| {
            (packet.destination, packet.ttl) = (POD_A, packet.ttl - 1);
        });
        let expect = Expect::Redirect(Path::SnatIn, delivered.build());
        node.check(&format!("{mode:?}: answer"), FROM_UPLINK, node.uplink, &answer.build(), expect);
    }
}

/// A host on the uplink's link pretends to be the pod, in the middle of the pod's flow.
#[test]
fn pods_side_of_a_past_stack_flow_is_refused_on_an_uplink() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let mut node = node(mode);
        let now = node.jiffies();
        begin(&mut node, now);
        let forged = arriving(POD_A, WORLD, ack(CLIENT, SERVER)).build();
        let expect = Expect::Drop(Reason::PodSourceNotFromNode);
        node.check(&format!("{mode:?}"), FROM_UPLINK, node.uplink, &forged, expect);
    }
}

#[test]
fn known_destination_gets_another_port_where_its_own_is_taken() {
    let mut node = node(Mode::Vxlan);
    let there = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP);
    node.know_destination(&there);
    node.add_translation(flow_of(WORLD, NODE1, (SERVER, CLIENT), protocol::TCP));
    node.run(FROM_POD, node.pod_a, &from_a(WORLD, syn(CLIENT, SERVER)).build(), 0);
    let port = node.translations()[&there].source_port.get();
    assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{port}");
}

#[test]
fn other_packets_than_the_pods_connection_are_seen_by_rules() {
    let mut node = node(Mode::Vxlan);
    let there = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP);
    let pod = node.pod_a;
    let plain = from_a(WORLD, syn(CLIENT, SERVER));
    let flags = |flags| Transport::Tcp { source: CLIENT, destination: SERVER, flags };
    let with = |change: &dyn Fn(&mut Packet)| plain.clone().with(|packet| change(packet));
    let from_b = Packet::new(POD_B, WORLD, syn(CLIENT, SERVER)).macs(HOST_B_MAC, POD_B_MAC);
    let packets = [
        ("another pod", node.pod_b, from_b),
        ("another link", node.pod_b, plain.clone().macs(HOST_B_MAC, POD_A_MAC)),
        ("another link address", node.pod_a, plain.clone().macs(HOST_A_MAC, STRANGER_MAC)),
        ("TTL 1", node.pod_a, with(&|packet| packet.ttl = 1)),
        ("IP options", node.pod_a, with(&|packet| packet.options = vec![1; 4])),
        ("a first fragment", node.pod_a, with(&|packet| packet.fragment = (0, true))),
        ("larger than the path takes", node.pod_a, with(&|packet| packet.payload = vec![0; 1461])),
        ("another port", node.pod_a, from_a(WORLD, syn(CLIENT, SERVER + 1))),
        ("another address", node.pod_a, from_a([198, 51, 100, 11].into(), syn(CLIENT, SERVER))),
        ("UDP", node.pod_a, from_a(WORLD, udp(CLIENT, SERVER))),
        ("a packet of a connection that is not known", node.pod_a, from_a(WORLD, ack(CLIENT, SERVER))),
        ("an answer", node.pod_a, from_a(WORLD, syn_ack(CLIENT, SERVER))),
        ("SYN and FIN", node.pod_a, from_a(WORLD, flags(0x03))),
        ("SYN and RST", node.pod_a, from_a(WORLD, flags(0x06))),
    ];
    for (what, link, packet) in packets {
        assert_is_judged(&mut node, what, link, &packet, |node| {
            node.know_destination(&there);
        });
    }
    type Change = fn(&mut KnownFlow);
    let changes: [(&str, Change); 3] = [
        ("it has expired", |known| known.asked = known.asked.wrapping_sub(KNOWN_FLOW_JIFFIES)),
        ("another epoch", |known| known.epochs ^= 1),
        ("another flow has its element now", |known| known.key.source_port = Be16::new(1)),
    ];
    for (what, change) in changes {
        assert_is_judged(&mut node, what, pod, &plain, |node| {
            let mut known = node.know_destination(&there);
            change(&mut known);
            node.loaded.maps.flows.insert(there.destination_key(), known, 0).unwrap();
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
            let packet = from_a(WORLD, transport);
            assert_is_judged(&mut node, what, pod, &packet, |node| {
                begin(node, 0);
                for (flow, mut half) in node.translations() {
                    change(&mut half);
                    node.loaded.maps.translations.insert(flow, half, 0).unwrap();
                }
                node.know_destination(&there);
            });
        }
    }
}

/// Asserts that a program does the same with a packet whether or not something is known.
#[track_caller]
fn assert_is_judged(node: &mut Fixture, what: &str, link: u32, packet: &Packet, know: impl Fn(&mut Fixture)) {
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

fn node(mode: Mode) -> Fixture {
    let node = Fixture::new(mode);
    add_default_route(&node);
    node
}

fn add_default_route(node: &Fixture) {
    node.namespace.ip("route add default via 10.200.0.2 dev up0");
}

/// Begins a connection of pod A to the world, up to its third packet. `asked` is when the host's
/// rules were asked about it.
fn begin(node: &mut Fixture, asked: u32) -> abi::Flow {
    begin_before(node, asked, |_| ())
}

/// Like [`begin`], with an event before the third packet.
fn begin_before(node: &mut Fixture, asked: u32, happens: impl FnOnce(&mut Fixture)) -> abi::Flow {
    node.run(TO_UPLINK, node.uplink, &out(POD_A, WORLD, syn(CLIENT, SERVER)).build(), 0);
    node.run(FROM_UPLINK, node.uplink, &arriving(WORLD, NODE1, syn_ack(SERVER, CLIENT)).build(), 0);
    node.set_asked(asked);
    happens(node);
    node.run(FROM_POD, node.pod_a, &from_a(WORLD, ack(CLIENT, SERVER)).build(), 0);
    flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP)
}

fn destination_of(node: &Fixture, flow: &abi::Flow) -> Option<KnownFlow> {
    node.loaded.maps.flows.get(&flow.destination_key(), 0).ok()
}
