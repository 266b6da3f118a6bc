//! Extension headers of IPv6, at each program that walks along them.

use podwire_common::flow::protocol::{
    AH, DESTINATION_OPTIONS as DESTINATION, FRAGMENT, HOP_BY_HOP as HOP, ROUTING, UDP,
};
use podwire_common::names::programs::{FROM_POD, FROM_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::{Drop as Reason, Path};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::fixture6::*;
use crate::ipv6::{delivered, to};
use crate::ipv6_tunnel::{in_tunnel_to_node1, node_over_ipv6};
use crate::packets::{ETHERNET, Transport, behind_ethernet, udp};
use crate::packets6::{Extension, Packet6};

/// Bytes of an Ethernet header and the fixed IPv6 header.
const FIXED: usize = ETHERNET + 40;

/// Headers that the programs walk along. They leave it to the receiver to refuse an order that RFC
/// 8200 section 4.1 does not have.
const WALKED: [&[u8]; 20] = [
    &[HOP],
    &[ROUTING],
    &[DESTINATION],
    &[AH],
    &[HOP, DESTINATION],
    &[DESTINATION, HOP],
    &[AH, DESTINATION],
    &[DESTINATION, AH],
    &[ROUTING, DESTINATION],
    &[DESTINATION, ROUTING],
    &[HOP, HOP],
    &[ROUTING, ROUTING],
    &[DESTINATION, DESTINATION],
    &[AH, AH],
    &[DESTINATION, FRAGMENT],
    &[FRAGMENT, DESTINATION],
    &[HOP, DESTINATION, ROUTING, AH, DESTINATION, DESTINATION],
    &[HOP, DESTINATION, ROUTING, FRAGMENT, AH, DESTINATION],
    &[DESTINATION, DESTINATION, DESTINATION, DESTINATION, DESTINATION, FRAGMENT],
    &[AH; 6],
];

/// Returns a packet with headers of these kinds. A fragment header is that of a whole packet.
fn with(packet: &Packet6, kinds: &[u8]) -> Packet6 {
    let header = |kind: &u8| match *kind {
        FRAGMENT => Extension::fragment(0, false, 1),
        kind => Extension::of(kind),
    };
    packet.clone().with(|packet| packet.extensions = kinds.iter().map(header).collect())
}

/// Returns the packet with a destination options header that says it has `units` times 8 bytes more
/// than its first 8, and has `bytes` more.
fn with_options(packet: &Packet6, units: u8, bytes: usize) -> Packet6 {
    with(packet, &[DESTINATION]).with(|packet| {
        let rest = &mut packet.extensions[0].rest;
        rest[0] = units;
        // Each byte is the option Pad1.
        rest.resize(7 + bytes, 0);
    })
}

/// Returns the error of the packet's sender about a packet that has these headers and goes the
/// other way.
fn error(packet: &Packet6, kinds: &[u8]) -> Packet6 {
    let quoted = Packet6::new(packet.destination, packet.source, udp(80, 40000));
    packet.clone().with(|packet| {
        packet.transport = Transport::Icmp { kind: 1, code: 4, word: [0; 4] };
        packet.payload = behind_ethernet(&with(&quoted, kinds).build());
    })
}

/// Returns the packet in each form that the programs deliver.
fn good(packet: &Packet6) -> Vec<(String, Packet6)> {
    let mut all: Vec<_> = WALKED.iter().map(|kinds| (format!("{kinds:?}"), with(packet, kinds))).collect();
    all.push(("options of 512 bytes".into(), with_options(packet, 63, 63 * 8)));
    all.push(("an error that quotes six headers".into(), error(packet, &[DESTINATION; 6])));
    all
}

/// Returns frames of the packet that no program can parse, and the reasons.
fn faulty(packet: &Packet6) -> Vec<(String, Vec<u8>, Reason)> {
    let row = |what: &str, packet: Packet6, reason| (what.to_owned(), packet.build(), reason);
    let six_and_fragment = [&[DESTINATION; 6][..], &[FRAGMENT]].concat();
    let last_of_six = [&[DESTINATION; 5][..], &[FRAGMENT; 2]].concat();
    let mut all = vec![
        row("seven", with(packet, &[DESTINATION; 7]), Reason::ExtensionHeaders),
        row("six and a fragment header", with(packet, &six_and_fragment), Reason::ExtensionHeaders),
        row("two fragment headers of seven", with(packet, &last_of_six), Reason::ExtensionHeaders),
        row("an error that quotes seven", error(packet, &[DESTINATION; 7]), Reason::ExtensionHeaders),
        row(
            "an error that quotes two fragment headers",
            error(packet, &[FRAGMENT; 2]),
            Reason::ExtensionHeaders,
        ),
        row("options longer than the packet", with_options(packet, 9, 0), Reason::BadIpHeader),
        row("options as long as the packet", with_options(packet, 2, 0), Reason::Truncated),
        row("options of 512 bytes, and one unit more", with_options(packet, 66, 63 * 8), Reason::BadIpHeader),
    ];
    let mut next_is_beyond = with(packet, &[DESTINATION, HOP]);
    next_is_beyond.extensions[0].rest[0] = 9;
    all.push(row("the next header beyond the packet", next_is_beyond, Reason::Truncated));
    // What follows the packet in its frame is no part of it.
    let mut padded = with_options(packet, 9, 0).build();
    padded.resize(padded.len() + 128, 0);
    all.push(("options that end in the frame's padding".into(), padded, Reason::BadIpHeader));
    let mut cut_error = error(packet, &[DESTINATION]);
    cut_error.payload.truncate(40 + 4);
    all.push(row("an error that quotes half a header", cut_error, Reason::Truncated));
    for kind in [HOP, ROUTING, DESTINATION, AH, FRAGMENT] {
        let whole = with(packet, &[kind]);
        for length in [0, 1, 4, 7] {
            let frame = whole.build()[..FIXED + length].to_vec();
            all.push((format!("{length} bytes of {kind}"), frame, Reason::Truncated));
        }
    }
    // The packet says itself that it ends within the header.
    let mut short = with(packet, &[AH]).build();
    short.truncate(FIXED + 8);
    short[ETHERNET + 5] = 8;
    all.push(("8 bytes of AH are the packet".into(), short, Reason::BadIpHeader));
    all
}

#[test]
fn extension_headers_are_walked_along_up_to_a_bound() {
    let mut node = node(Mode::Vxlan);
    let link = node.pod_a;
    let packet = to(NEIGHBOUR, udp(40000, 80));
    for (what, packet) in good(&packet) {
        node.check(&what, FROM_POD, link, &packet.build(), delivered(&packet));
    }
    for (what, frame, reason) in faulty(&packet) {
        node.check(&what, FROM_POD, link, &frame, Expect::Drop(reason));
    }
    let fragment = |offset, has_more, transport| {
        with(&to(NEIGHBOUR, transport), &[DESTINATION])
            .with(|packet| packet.extensions.push(Extension::fragment(offset, has_more, 7)))
    };
    for (what, packet) in [
        ("options before a first fragment", fragment(0, true, udp(40000, 80))),
        ("options before a later fragment", fragment(2, false, Transport::None(UDP))),
    ] {
        node.check(what, FROM_POD, link, &packet.build(), delivered(&packet));
    }
}

/// The programs of an uplink leave what they cannot parse to the host.
#[test]
fn extension_headers_on_an_uplink_are_walked_along() {
    let mut node = node(Mode::Direct);
    let link = node.uplink;
    let packet = Packet6::new(REMOTE, POD, udp(40000, 80)).macs(UPLINK_MAC, NODE2_MAC);
    for (what, packet) in good(&packet) {
        let expect = Expect::Redirect(Path::DirectIn, packet.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(&what, FROM_UPLINK, link, &packet.build(), expect);
    }
    for (what, frame, _) in faulty(&packet) {
        node.check(&what, FROM_UPLINK, link, &frame, Expect::Pass);
    }
    let spoofed = packet.with(|packet| packet.source = NEIGHBOUR);
    for (what, frame, _) in faulty(&spoofed) {
        node.check(&what, FROM_UPLINK, link, &frame, Expect::Drop(Reason::PodSourceNotFromNode));
    }
}

#[test]
fn extension_headers_inside_the_tunnel_are_walked_along() {
    let mut node = node_over_ipv6();
    let link = node.uplink;
    let packet = Packet6::new(REMOTE, POD, udp(40000, 80)).macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    for (what, packet) in good(&packet) {
        let expect = Expect::Redirect(Path::TunnelIn, packet.forwarded(POD_A_MAC, HOST_A_MAC));
        node.check(&what, FROM_UPLINK, link, &in_tunnel_to_node1(&packet.build()).build(), expect);
    }
    for (what, frame, reason) in faulty(&packet) {
        node.check(&what, FROM_UPLINK, link, &in_tunnel_to_node1(&frame).build(), Expect::Drop(reason));
    }
}
