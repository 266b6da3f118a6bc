//! Pods' IPv6 packets to the world and back, and those of the node that leave beside them.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use podwire_common::abi::{self, Flow, TRANSLATION_HOST, TRANSLATION_RESERVATION, TRANSLATION_SNAT};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK, TO_OVERLAY, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, VXLAN_PORT};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;
use xtask::lab::is_kernel_since;

use crate::fixture::*;
use crate::fixture6::{
    ALL_NODES, LINK_LOCAL, NEIGHBOUR, NODE1_6, NODE2_6, OVERLAY, POD, REMOTE, WORLD6, node,
};
use crate::packets::{Transport, Vxlan, behind_ethernet, tcp, udp};
use crate::packets6::{Extension, Packet6};

const OWN: u16 = 40000;
/// A router of the world.
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 1);

fn out(source: Ipv6Addr, transport: Transport) -> Packet6 {
    Packet6::new(source, WORLD6, transport).macs(STRANGER_MAC, UPLINK_MAC)
}

fn back(source: Ipv6Addr, transport: Transport) -> Packet6 {
    Packet6::new(source, NODE1_6, transport).macs(UPLINK_MAC, STRANGER_MAC)
}

fn translated(packet: &Packet6) -> Expect {
    Expect::Stack(Path::SnatOut, packet.clone().with(|packet| packet.source = NODE1_6).build())
}

/// Returns exchanges: name, request, answer.
fn exchanges() -> [(&'static str, Transport, Transport); 3] {
    [
        ("TCP", tcp(OWN, 443), Transport::Tcp { source: 443, destination: OWN, flags: 0x12 }),
        ("UDP", udp(OWN, 53), udp(53, OWN)),
        ("echo", Transport::EchoRequest { identifier: 7 }, Transport::EchoReply { identifier: 7 }),
    ]
}

/// Returns an ICMPv6 error that quotes at most this many bytes of a packet.
fn about(kind: u8, quoted: &Packet6, bytes: usize) -> (Transport, Vec<u8>) {
    let quote = behind_ethernet(&quoted.build());
    let word = if kind == 2 { 1400_u32.to_be_bytes() } else { [0; 4] };
    (Transport::Icmp { kind, code: 0, word }, quote[..quote.len().min(bytes)].to_vec())
}

fn with_options(packet: &mut Packet6) {
    packet.extensions = [protocol::DESTINATION_OPTIONS; 2].map(Extension::of).into();
}

#[test]
fn a_pod_speaks_to_the_world_with_the_uplinks_address() {
    for (what, packet) in [
        ("TCP", out(POD, tcp(OWN, 443))),
        ("UDP", out(POD, udp(OWN, 53))),
        ("echo", out(POD, Transport::EchoRequest { identifier: 7 })),
        ("echo with identifier 0", out(POD, Transport::EchoRequest { identifier: 0 })),
        ("a protocol without ports", out(POD, Transport::None(47))),
        ("extension headers", out(POD, tcp(OWN, 443)).with(with_options)),
        (
            "an atomic fragment",
            out(POD, udp(OWN, 53)).with(|packet| packet.extensions.push(Extension::fragment(0, false, 1))),
        ),
    ] {
        let mut node = node(Mode::Vxlan);
        let link = node.uplink;
        node.check(what, TO_UPLINK, link, &packet.build(), translated(&packet));
        node.check(what, TO_UPLINK, link, &packet.build(), translated(&packet));
        let translations = node.translations();
        assert_eq!(translations.len(), 2, "{what}: both halves, once");
        for (flow, half) in translations {
            let (ends, reply) = match flow.source == POD.into() {
                true => ((NODE1_6, WORLD6), 0),
                false => ((WORLD6, POD), 1),
            };
            let ends = (Addr::from(ends.0), Addr::from(ends.1));
            assert_eq!((half.source, half.destination), ends, "{what}");
            assert_eq!((half.kind, half.reply), (TRANSLATION_SNAT, reply), "{what}");
        }
        assert!(node.stack_flows().is_empty(), "{what}: the world's replies go up the stack anyway");
    }
}

#[test]
fn a_reply_from_the_world_reaches_the_pod() {
    for (what, request, answer) in exchanges() {
        for change in [|_: &mut Packet6| (), with_options] {
            let mut node = node(Mode::Vxlan);
            let link = node.uplink;
            node.run(TO_UPLINK, link, &out(POD, request.clone()).build(), 0);
            let reply = back(WORLD6, answer.clone()).with(change);
            let expected = Packet6 { destination: POD, ..reply.clone() };
            let expect = Expect::Stack(Path::SnatIn, expected.build());
            node.check(what, FROM_UPLINK, link, &reply.build(), expect);
            let other = reply.with(|packet| packet.source = ROUTER).build();
            node.check("another host's", FROM_UPLINK, link, &other, Expect::Pass);
        }
    }
}

#[test]
fn all_fragments_are_translated_alike() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let fragment = |packet: Packet6, offset, has_more| {
        packet.with(|packet| packet.extensions.push(Extension::fragment(offset, has_more, 9)))
    };
    let first = fragment(out(POD, udp(OWN, 53)), 0, true);
    node.check("the first", TO_UPLINK, link, &first.build(), translated(&first));
    let later = fragment(out(POD, Transport::None(protocol::UDP)), 2, false);
    node.check("a later one", TO_UPLINK, link, &later.build(), translated(&later));
    let arrives = |packet: &Packet6| {
        Expect::Stack(Path::SnatIn, packet.clone().with(|packet| packet.destination = POD).build())
    };
    let early = fragment(back(WORLD6, Transport::None(protocol::UDP)), 2, false);
    node.check("a reply's, early", FROM_UPLINK, link, &early.build(), Expect::Pass);
    let first = fragment(back(WORLD6, udp(53, OWN)), 0, true);
    let lost = Expect::Drop(Reason::FragmentBeforeFirst);
    node.check("its first", FROM_UPLINK, link, &first.build(), lost);
    node.check("the first again", FROM_UPLINK, link, &first.build(), arrives(&first));
    node.check("its later one", FROM_UPLINK, link, &early.build(), arrives(&early));
}

#[test]
fn an_error_from_the_world_reaches_the_pod_in_its_own_terms() {
    for (what, request, _) in exchanges() {
        // The error quotes the whole packet, or no more than its ports.
        for (kind, bytes, change) in [
            (1, usize::MAX, (|_| ()) as fn(&mut Packet6)),
            (2, usize::MAX, |_| ()),
            (3, 48, |_| ()),
            (2, usize::MAX, with_options),
        ] {
            let mut node = node(Mode::Vxlan);
            let link = node.uplink;
            let sent = out(POD, request.clone()).with(change);
            node.run(TO_UPLINK, link, &sent.build(), 0);
            let (transport, quote) = about(kind, &out(NODE1_6, request.clone()).with(change), bytes);
            let error = back(ROUTER, transport.clone()).with(|packet| packet.payload = quote);
            let (_, quote) = about(kind, &sent, bytes);
            let expected = Packet6 { destination: POD, payload: quote, ..error.clone() };
            let expect = Expect::Stack(Path::SnatIn, expected.build());
            node.check(&format!("{what}, {kind}, {bytes}"), FROM_UPLINK, link, &error.build(), expect);
        }
    }
}

#[test]
fn error_about_an_answer_reaches_the_world_in_its_terms() {
    for (what, request, answer) in exchanges() {
        // The sender is the pod itself, or the node when its route to the pod has too small an MTU.
        for (sender, path) in [(POD, Path::SnatOut), (NODE1_6, Path::HostSnatOut)] {
            let mut node = node(Mode::Vxlan);
            let link = node.uplink;
            node.run(TO_UPLINK, link, &out(POD, request.clone()).build(), 0);
            let quoted = |to| Packet6::new(WORLD6, to, answer.clone());
            let (transport, quote) = about(2, &quoted(POD), usize::MAX);
            let error = out(sender, transport).with(|packet| packet.payload = quote);
            let (_, quote) = about(2, &quoted(NODE1_6), usize::MAX);
            let expected = Packet6 { source: NODE1_6, payload: quote, ..error.clone() };
            let expect = Expect::Stack(path, expected.build());
            node.check(&format!("{what}, from {sender}"), TO_UPLINK, link, &error.build(), expect);
        }
    }
}

#[test]
fn second_flow_of_the_host_gives_its_port_way_and_regains_it() {
    for (what, request, answer) in exchanges() {
        let mut node = node(Mode::Vxlan);
        let link = node.uplink;
        node.run(TO_UPLINK, link, &out(POD, request.clone()).build(), 0);
        let host = out(NODE1_6, request.clone());
        let ran = node.run(TO_UPLINK, link, &host.build(), 0);
        let mut moved = node.translations().into_values();
        let half = moved.find(|half| half.kind == TRANSLATION_HOST && half.reply == 0);
        let port = half.unwrap_or_else(|| panic!("{what}: the host's flow keeps its port")).source_port.get();
        assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{what}: {port}");
        let (request, moved) = match request {
            Transport::Tcp { destination, flags, .. } => (
                tcp(port, destination),
                Transport::Tcp { source: 443, destination: port, flags: flags | 0x10 },
            ),
            Transport::Udp { destination, .. } => (udp(port, destination), udp(53, port)),
            _ => (Transport::EchoRequest { identifier: port }, Transport::EchoReply { identifier: port }),
        };
        let expected = Packet6 { transport: request, ..host.clone() };
        assert_eq!(hex(&ran.frame), hex(&expected.build()), "{what}");
        let reply = back(WORLD6, moved);
        let expected = Packet6 { transport: answer.clone(), ..reply.clone() };
        node.check(what, FROM_UPLINK, link, &reply.build(), Expect::Stack(Path::SnatIn, expected.build()));
        let reply = back(WORLD6, answer);
        let expected = Packet6 { destination: POD, ..reply.clone() };
        node.check(what, FROM_UPLINK, link, &reply.build(), Expect::Stack(Path::SnatIn, expected.build()));
    }
}

#[test]
fn flows_of_the_host_are_reserved_and_untouched() {
    for (what, request, answer) in exchanges() {
        let mut node = node(Mode::Vxlan);
        let link = node.uplink;
        node.check(what, TO_UPLINK, link, &out(NODE1_6, request.clone()).build(), Expect::Pass);
        let kinds: BTreeSet<_> = node.translations().values().map(|half| (half.kind, half.reply)).collect();
        assert_eq!(kinds, BTreeSet::from([(TRANSLATION_RESERVATION, 1)]), "{what}");
        node.check(what, FROM_UPLINK, link, &back(WORLD6, answer).build(), Expect::Pass);
        let ran = node.run(TO_UPLINK, link, &out(POD, request.clone()).build(), 0);
        assert_ne!(ran.frame, out(NODE1_6, request).build(), "{what}: the pod gets another port");
    }
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let message = |kind| Transport::Icmp { kind, code: 0, word: [0; 4] };
    for (what, packet) in [
        ("an echo's answer", out(NODE1_6, Transport::EchoReply { identifier: 7 })),
        ("a neighbour solicitation", out(NODE1_6, message(135))),
        ("a listener report", out(LINK_LOCAL, message(143)).with(|packet| packet.destination = ALL_NODES)),
        ("a stranger's packet that the node routes", out(ROUTER, tcp(OWN, 443))),
        ("to a group", out(NODE1_6, udp(OWN, 546)).with(|packet| packet.destination = ALL_NODES)),
    ] {
        node.check(what, TO_UPLINK, link, &packet.build(), Expect::Pass);
        assert!(node.translations().is_empty(), "{what}");
    }
}

#[test]
fn every_reason_to_drop() {
    let mut node = node(Mode::Vxlan);
    let (link, no_uplink) = (node.uplink, node.pod_b);
    let (transport, quote) = about(1, &Packet6::new(WORLD6, POD, udp(53, OWN)), usize::MAX);
    let authenticated =
        |packet: Packet6| packet.with(|packet| packet.extensions.push(Extension::of(protocol::AH)));
    let later = out(POD, Transport::None(protocol::UDP))
        .with(|packet| packet.extensions.push(Extension::fragment(2, false, 4)));
    for (what, packet, reason) in [
        ("VXLAN to the world", out(POD, udp(OWN, VXLAN_PORT)), Reason::VxlanFromPod),
        ("AH in front of TCP", authenticated(out(POD, tcp(OWN, 443))), Reason::SnatImpossible),
        (
            "an error about no flow",
            out(POD, transport).with(|packet| packet.payload = quote),
            Reason::SnatProtocolUnknown,
        ),
        (
            "a node information query",
            out(POD, Transport::Icmp { kind: 139, code: 0, word: [0; 4] }),
            Reason::SnatProtocolUnknown,
        ),
        ("a later fragment without its first", later, Reason::FragmentWithoutFirst),
    ] {
        node.check(what, TO_UPLINK, link, &packet.build(), Expect::Drop(reason));
    }
    let good = out(POD, tcp(OWN, 443));
    let none = Expect::Drop(Reason::SnatNoAddress);
    node.check("a link without address", TO_UPLINK, no_uplink, &good.build(), none);
    // A packet of a translated flow that gets an authentication header later.
    node.check("without AH", TO_UPLINK, link, &good.build(), translated(&good));
    let refused = Expect::Drop(Reason::SnatImpossible);
    node.check("with AH", TO_UPLINK, link, &authenticated(good).build(), refused);
    let reply = authenticated(back(WORLD6, Transport::Tcp { source: 443, destination: OWN, flags: 0x12 }));
    node.check("its reply", FROM_UPLINK, link, &reply.build(), Expect::Pass);
}

#[test]
fn some_flows_keep_the_pods_address() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let untranslated = |packet: &Packet6| Expect::Stack(Path::Untranslated, packet.build());
    for (what, request, answer) in exchanges() {
        let request = Packet6::new(WORLD6, POD, request).macs(UPLINK_MAC, STRANGER_MAC);
        node.check(what, FROM_UPLINK, link, &request.build(), Expect::Pass);
        let answer = out(POD, answer);
        node.check(what, TO_UPLINK, link, &answer.build(), untranslated(&answer));
    }
    node.model.non_masquerade.insert("2001:db8:0:1::/64".parse().unwrap());
    node.fill();
    let excluded = out(POD, tcp(OWN, 80)).with(|packet| packet.destination = ROUTER);
    node.check("an excluded network", TO_UPLINK, link, &excluded.build(), untranslated(&excluded));
    let beside = out(POD, tcp(OWN, 80));
    node.check("beside it", TO_UPLINK, link, &beside.build(), translated(&beside));
}

#[test]
fn addresses_of_ipv4_are_refused_on_the_uplink() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let mapped = NODE1.to_ipv6_mapped();
    for (source, destination) in [(mapped, NODE1_6), (WORLD6, mapped)] {
        let packet = Packet6::new(source, destination, tcp(1, 2)).macs(UPLINK_MAC, STRANGER_MAC);
        let refused = Expect::Drop(Reason::AddressNeverOnWire);
        node.check("mapped", FROM_UPLINK, link, &packet.build(), refused);
    }
}

/// Gives the node's uplink addresses and a default route. `source`: the route's source.
fn route(node: &Fixture, source: Ipv6Addr) {
    for (switch, value) in [("disable_ipv6", "0"), ("forwarding", "1"), ("accept_dad", "0")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/up0/{switch}"), value).unwrap();
    }
    std::fs::write("/proc/sys/net/ipv6/conf/pwa/disable_ipv6", "0").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/pwa/forwarding", "1").unwrap();
    let addresses = BTreeSet::from([NODE1_6, source]);
    let add = |address: &Ipv6Addr| format!("address add {address}/64 dev up0 nodad\n");
    node.namespace.ip(&format!(
        "{}neigh add {NODE2_6} lladdr 02:00:00:00:0c:02 dev up0 nud permanent\n\
         route add default via {NODE2_6} dev up0 src {source}\n",
        addresses.iter().map(add).collect::<String>()
    ));
}

#[test]
fn the_routes_source_is_used_unless_the_agent_does_not_know_it() {
    const SECOND: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x200, 0, 0, 0, 0, 0x99);
    for is_known in [true, false] {
        let mut node = node(Mode::Vxlan);
        let link = node.uplink;
        route(&node, SECOND);
        if is_known {
            node.model.other_addresses.insert(SECOND.into());
            node.fill();
        }
        let packet = out(POD, tcp(OWN, 443));
        let ran = node.run(TO_UPLINK, link, &packet.build(), 0);
        let from = |source| hex(&packet.clone().with(|packet| packet.source = source).build());
        let mut sources = if is_known { vec![from(SECOND)] } else { vec![from(NODE1_6)] };
        if !is_kernel_since(6, 7) {
            // Older kernels may give the route's source too, by a later point release.
            sources.push(from(NODE1_6));
        }
        assert!(sources.contains(&hex(&ran.frame)), "known: {is_known}: {}", hex(&ran.frame));
    }
}

#[test]
fn an_answered_flow_goes_past_the_stack_both_ways() {
    for (what, request, answer) in exchanges() {
        for change in [|_: &mut Packet6| (), with_options] {
            let mut node = node(Mode::Vxlan);
            let (link, pod_link) = (node.uplink, node.pod_a);
            route(&node, NODE1_6);
            let sent = |transport: Transport| {
                Packet6::new(POD, WORLD6, transport).macs(HOST_A_MAC, POD_A_MAC).with(change)
            };
            let first = sent(request.clone()).build();
            let to_stack = Expect::Stack(Path::ToStack, first.clone());
            node.check(what, FROM_POD, pod_link, &first, to_stack);
            node.run(TO_UPLINK, link, &out(POD, request.clone()).build(), 0);
            node.run(FROM_UPLINK, link, &back(WORLD6, answer.clone()).build(), 0);
            node.set_past_stack();
            let later = match request.clone() {
                Transport::Tcp { source, destination, .. } => {
                    Transport::Tcp { source, destination, flags: 0x10 }
                }
                other => other,
            };
            let packet = sent(later);
            let expected = packet.clone().with(|packet| packet.source = NODE1_6);
            let expect = Expect::Redirect(Path::SnatOut, expected.forwarded(HOST_A_MAC, POD_A_MAC));
            node.check(what, FROM_POD, pod_link, &packet.build(), expect);
            let reply = back(WORLD6, answer.clone()).with(change);
            let expected = reply.clone().with(|packet| packet.destination = POD);
            let expect = Expect::Redirect(Path::SnatIn, expected.forwarded(POD_A_MAC, HOST_A_MAC));
            node.check(what, FROM_UPLINK, link, &reply.build(), expect);
            let last = packet.with(|packet| packet.hop_limit = 1).build();
            let expect = Expect::Stack(Path::ToStack, last.clone());
            node.check("the last hop", FROM_POD, pod_link, &last, expect);
        }
    }
}

#[test]
fn too_large_packets_past_the_stack_are_answered() {
    let mut node = node(Mode::Vxlan);
    let (link, pod_link) = (node.uplink, node.pod_a);
    route(&node, NODE1_6);
    node.namespace.ip(&format!("route add {WORLD6} via {NODE2_6} dev up0 mtu lock 1400"));
    node.run(TO_UPLINK, link, &out(POD, udp(OWN, 53)).build(), 0);
    node.run(FROM_UPLINK, link, &back(WORLD6, udp(53, OWN)).build(), 0);
    node.set_past_stack();
    let of_length = |length: usize| {
        Packet6::new(POD, WORLD6, udp(OWN, 53))
            .macs(HOST_A_MAC, POD_A_MAC)
            .with(|packet| packet.payload = vec![7; length - 48])
    };
    let fits = of_length(1400);
    let expected = fits.clone().with(|packet| packet.source = NODE1_6).forwarded(HOST_A_MAC, POD_A_MAC);
    node.check("fits", FROM_POD, pod_link, &fits.build(), Expect::Redirect(Path::SnatOut, expected));
    let large = of_length(1401);
    let (transport, quote) = about(2, &large, 64);
    let answer = Packet6::new(OVERLAY, POD, transport)
        .macs(POD_A_MAC, HOST_A_MAC)
        .with(|packet| packet.payload = quote);
    let expect = Expect::Redirect(Path::TooBigAnswered, answer.build());
    node.check("one byte more", FROM_POD, pod_link, &large.build(), expect);
    let reply = back(WORLD6, udp(53, OWN)).with(|packet| packet.payload = vec![7; 1451 - 48]);
    let expected = reply.clone().with(|packet| packet.destination = POD);
    // The stack tells its sender.
    let expect = Expect::Stack(Path::SnatIn, expected.build());
    node.check("a reply larger than the pod's link", FROM_UPLINK, link, &reply.build(), expect);
}

#[test]
fn a_route_by_a_link_without_programs_is_refused() {
    let mut node = node(Mode::Vxlan);
    let pod_link = node.pod_a;
    route(&node, NODE1_6);
    node.model.links.clear();
    node.fill();
    let packet = Packet6::new(POD, WORLD6, udp(OWN, 53)).macs(HOST_A_MAC, POD_A_MAC).build();
    let refused = Expect::Drop(Reason::LinkWithoutPrograms);
    node.check("no programs there", FROM_POD, pod_link, &packet, refused);
}

#[test]
fn sources_unknown_elsewhere_are_masqueraded_into_the_tunnel() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let packet = Packet6::new(ROUTER, REMOTE, udp(OWN, 53));
    let expected = packet.clone().with(|packet| packet.source = OVERLAY);
    let leaves = expected.macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build();
    let expect = Expect::Stack(Path::StackToTunnel, leaves);
    node.check("an outside client", TO_OVERLAY, link, &packet.build(), expect);
    let reply = Packet6::new(REMOTE, OVERLAY, udp(53, OWN)).macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    let tunnel = Vxlan::new(NODE2, NODE1)
        .with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
        .around(&reply.build());
    node.check_on_wire("the reply", "up0-p", &tunnel, Some(Path::SnatIn.name()));
    // The stack sends the reply on, with the other node's pod as its source.
    let on = Packet6::new(REMOTE, ROUTER, udp(53, OWN)).macs(STRANGER_MAC, UPLINK_MAC).build();
    node.check("the reply on its way", TO_UPLINK, link, &on, Expect::Pass);
    let other = Packet6::new(REMOTE, ROUTER, udp(54, OWN)).macs(STRANGER_MAC, UPLINK_MAC).build();
    node.check("no reply", TO_UPLINK, link, &other, Expect::Drop(Reason::PodSourceUnknown));
}

#[test]
fn a_port_that_is_taken_is_replaced() {
    let mut node = node(Mode::Vxlan);
    let link = node.uplink;
    let first = out(POD, tcp(OWN, 443));
    node.check("the first pod keeps its port", TO_UPLINK, link, &first.build(), translated(&first));
    let second = out(NEIGHBOUR, tcp(OWN, 443));
    let ran = node.run(TO_UPLINK, link, &second.build(), 0);
    let port = u16::from_be_bytes([ran.frame[54], ran.frame[55]]);
    assert!((SNAT_PORTS.0..=SNAT_PORTS.1).contains(&port), "{port}");
    let expected = Packet6 { source: NODE1_6, transport: tcp(port, 443), ..second };
    assert_eq!(hex(&ran.frame), hex(&expected.build()));
    // A protocol without ports has no other one.
    let tunnel = out(POD, Transport::None(47));
    node.check("the first pod's tunnel", TO_UPLINK, link, &tunnel.build(), translated(&tunnel));
    let tunnel = out(NEIGHBOUR, Transport::None(47)).build();
    node.check("the second's", TO_UPLINK, link, &tunnel, Expect::Drop(Reason::SnatPortsExhausted));
    let reply = Flow::new(WORLD6.into(), NODE1_6.into(), Be16::new(443), Be16::new(port), protocol::TCP);
    let half: abi::Translation = node.translations()[&reply];
    assert_eq!((half.destination, half.destination_port.get()), (NEIGHBOUR.into(), OWN));
}
