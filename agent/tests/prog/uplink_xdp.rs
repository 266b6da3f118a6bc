//! `uplink_xdp`: the early drop of tunnel packets.

use std::net::IpAddr;

use podwire_common::flow::protocol;
use podwire_common::names::VXLAN_PORT;
use podwire_common::names::programs::UPLINK_XDP;
use podwire_common::reason::{Drop as Reason, Hook};
use podwire_core::model::Mode;

use crate::fixture::*;
use crate::fixture6::*;
use crate::packets::*;
use crate::packets6::{Extension, Packet6, over_ipv6};

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn tunnel() -> Vxlan {
    Vxlan::new(NODE2, NODE1).with(|outer| (outer.destination_mac, outer.source_mac) = (UPLINK_MAC, NODE2_MAC))
}

/// Returns the outer source of a frame.
fn source_of(frame: &[u8]) -> IpAddr {
    match frame[ETHERNET] >> 4 {
        4 => <[u8; 4]>::try_from(&frame[ETHERNET + 12..ETHERNET + 16]).unwrap().into(),
        _ => <[u8; 16]>::try_from(&frame[ETHERNET + 8..ETHERNET + 24]).unwrap().into(),
    }
}

#[track_caller]
fn check(node: &mut Fixture, what: &str, frame: &[u8], drop: Option<Reason>) {
    node.events();
    node.renew_budgets();
    let before = node.counters();
    let code = node.run_xdp(frame);
    let events = node.events();
    let told = events.iter().map(|event| {
        let hook = (event.hook == Hook::UplinkXdp as u8).then_some(event.outcome);
        (hook, IpAddr::from(event.flow.source), event.flow.destination_port.get(), event.length as usize)
    });
    let expected = drop.map(|reason| (Some(reason as u16), source_of(frame), VXLAN_PORT, frame.len()));
    assert_eq!(told.collect::<Vec<_>>(), Vec::from_iter(expected), "{what}: events");
    let after = node.counters();
    assert_eq!(code, if drop.is_some() { XDP_DROP } else { XDP_PASS }, "{what} ({UPLINK_XDP})");
    for (name, count) in after {
        let more = u64::from(drop.is_some_and(|reason| reason.name() == name));
        assert_eq!(count, before.get(&name).copied().unwrap_or(0) + more, "{what}: {name}");
    }
}

#[test]
fn the_tunnel_and_everything_else_passes() {
    let mut node = Fixture::for_xdp(Mode::Vxlan);
    let frame = inner(&Packet::new(REMOTE_POD, POD_A, tcp(1, 2)));
    let good = tunnel().around(&frame);
    let stranger = tunnel().with(|outer| outer.source = STRANGER);
    let ssh = Packet::new(STRANGER, NODE1, tcp(1, 22)).build();
    for (what, frame) in [
        ("a node's", good.clone()),
        (
            "a stranger's that only passes through",
            stranger.clone().with(|t| t.destination = WORLD).around(&frame),
        ),
        (
            "with outer IP options: a later hook checks it",
            stranger.clone().with(|t| t.options = vec![1; 4]).around(&frame),
        ),
        (
            "an outer fragment: a later hook checks it",
            stranger
                .with(|t| {
                    (t.dont_fragment, t.fragment) = (false, (2, false));
                })
                .around(&frame),
        ),
        ("TCP", ssh.clone()),
        ("UDP to another port", Packet::new(STRANGER, NODE1, udp(1, 53)).build()),
        ("a VLAN tag", tagged(&good)),
        ("a tunnel of IPv6 by a link without IPv6", over_ipv6(STRANGER6, NODE1_6, 50000, &frame).build()),
        ("an Ethernet header alone", ssh[..ETHERNET].to_vec()),
        ("half an IPv4 header", ssh[..ETHERNET + 10].to_vec()),
        ("half a UDP header", good[..ETHERNET + 24].to_vec()),
        ("half a VXLAN header", good[..OUTER - 4].to_vec()),
    ] {
        check(&mut node, what, &frame, None);
    }
}

#[test]
fn every_reason_to_drop() {
    let mut node = Fixture::for_xdp(Mode::Vxlan);
    let frame = inner(&Packet::new(REMOTE_POD, POD_A, tcp(1, 2)));
    for (what, frame, reason) in [
        ("no node's", tunnel().with(|t| t.source = STRANGER).around(&frame), Reason::TunnelPeerUnknown),
        ("another network", tunnel().with(|t| t.vni = 7).around(&frame), Reason::TunnelVniUnknown),
        (
            "flags that are not VXLAN's",
            tunnel().with(|t| t.flags = 0).around(&frame),
            Reason::TunnelVniUnknown,
        ),
    ] {
        check(&mut node, what, &frame, Some(reason));
    }
}

#[test]
fn outer_headers_of_ipv6_are_checked_too() {
    let mut node = Fixture::new(Mode::Vxlan);
    make_dual(&mut node);
    node.use_loopback_as_uplink();
    let frame = inner(&Packet::new(REMOTE_POD, POD_A, tcp(1, 2)));
    let tunnel = || over_ipv6(NODE2_6, NODE1_6, 50000, &frame).macs(UPLINK_MAC, NODE2_MAC);
    let stranger = || tunnel().with(|packet| packet.source = STRANGER6);
    let mut other_network = tunnel();
    other_network.payload[6] ^= 1;
    let mut other_flags = tunnel();
    other_flags.payload[0] = 0;
    let options = Extension::of(protocol::DESTINATION_OPTIONS);
    let dns = Packet6::new(STRANGER6, NODE1_6, udp(1, 53)).with(|packet| packet.payload = vec![0; 8]);
    for (what, frame, drop) in [
        ("a node's", tunnel(), None),
        (
            "a stranger's that only passes through",
            stranger().with(|packet| packet.destination = WORLD6),
            None,
        ),
        (
            "an extension header: a later hook checks it",
            stranger().with(|packet| packet.extensions.push(options)),
            None,
        ),
        ("UDP to another port", dns, None),
        ("no node's", stranger(), Some(Reason::TunnelPeerUnknown)),
        ("another network", other_network, Some(Reason::TunnelVniUnknown)),
        ("flags that are not VXLAN's", other_flags, Some(Reason::TunnelVniUnknown)),
    ] {
        check(&mut node, what, &frame.build(), drop);
    }
    for length in [ETHERNET + 39, ETHERNET + 47, ETHERNET + 55] {
        check(&mut node, "cut off", &stranger().build()[..length], None);
    }
}
