//! Packets of flows that can have an entry in `FLOWS` or `FLOWS6`, of three kinds:
//!
//! - the first packet of a flow
//! - a later one that a program judges again
//! - one of a known flow

use std::net::{Ipv4Addr, Ipv6Addr};

use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::Path;

use crate::family::{Address, IpPacket as _, can_leave_tunnel};
use crate::fixture::flow_of;
use crate::fixture6::{POD, REMOTE};
use crate::kind::{Kind, Link};
use crate::kinds::{
    CLIENT, SERVER, ack, arriving, from_a, from_pod, from_uplink, named, out, over_ipv6, syn, syn_ack,
    tunnelled,
};
use crate::packets::{Transport, udp};
use crate::packets6::Packet6;

/// Returns all of them.
pub fn kinds() -> Vec<Kind> {
    [of_family::<Ipv4Addr>(), of_family::<Ipv6Addr>(), in_tunnel_of_ipv6()].concat()
}

fn of_family<A: Address>() -> Vec<Kind> {
    [
        flows::<A>("same node", |name, transport| from_pod(name, &from_a(A::POD_B, transport), Path::Local)),
        flows::<A>("same node, with hostPorts", |name, transport| {
            from_pod(name, &from_a(A::POD_B, transport), Path::Local).with_host_port()
        }),
        flows::<A>("VXLAN", |name, transport| {
            from_pod(name, &from_a(A::REMOTE_POD, transport), Path::TunnelOut)
        }),
        flows::<A>("direct", |name, transport| {
            from_pod(name, &from_a(A::REMOTE_POD, transport), Path::DirectOut).direct()
        }),
        from_tunnel::<A>(),
        flows::<A>("direct", |name, transport| {
            let packet = arriving(A::REMOTE_POD, A::POD_A, transport);
            from_uplink(name, packet.build(), Some(Path::DirectIn)).direct()
        }),
        to_world::<A>(),
        from_world::<A>(),
    ]
    .concat()
}

fn from_tunnel<A: Address>() -> Vec<Kind> {
    if !can_leave_tunnel::<A>() {
        return Vec::new();
    }
    flows::<A>("VXLAN", |name, transport| {
        let packet = A::Packet::new(A::REMOTE_POD, A::POD_A, transport);
        from_uplink(name, tunnelled(&packet), Some(Path::TunnelIn))
    })
}

/// Returns packets of IPv6 in a tunnel of IPv6.
fn in_tunnel_of_ipv6() -> Vec<Kind> {
    const WAY: &str = "VXLAN over IPv6";
    [
        flows::<Ipv6Addr>(WAY, |name, transport| {
            from_pod(name, &from_a(REMOTE, transport), Path::TunnelOut).over_ipv6()
        }),
        flows::<Ipv6Addr>(WAY, |name, transport| {
            let packet =
                Packet6::new(REMOTE, POD, transport).on_link(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
            let frame = over_ipv6(&packet.build()).build();
            from_uplink(name, frame, Some(Path::TunnelIn)).over_ipv6()
        }),
    ]
    .concat()
}

/// Returns the kinds of a TCP flow and of a UDP flow.
fn flows<A: Address>(way: &str, kind: impl Fn(String, Transport) -> Kind) -> Vec<Kind> {
    let way = named::<A>(way);
    let (tcp, udp) = (|| ack(CLIENT, SERVER), || udp(CLIENT, SERVER));
    [
        vec![kind(format!("{way}, TCP, first packet"), syn(CLIENT, SERVER)).first()],
        later(&format!("{way}, TCP"), |name| kind(name, tcp())),
        vec![kind(format!("{way}, UDP, first packet"), udp()).first()],
        later(&format!("{way}, UDP"), |name| kind(name, udp())),
    ]
    .concat()
}

fn later(flow: &str, kind: impl Fn(String) -> Kind) -> Vec<Kind> {
    vec![
        kind(format!("{flow}, later packet, judged anew")).judged_anew(),
        kind(format!("{flow}, later packet, known")).known(),
    ]
}

/// Puts three packets before this one: pod A's request to the world, the answer, and the packet
/// that establishes the flow.
fn answered<A: Address>(kind: Kind, request: Transport, answer: Transport, third: Transport) -> Kind {
    kind.after(TO_UPLINK, Link::Uplink, out(A::POD_A, A::WORLD, request).build())
        .after(FROM_UPLINK, Link::Uplink, arriving(A::WORLD, A::NODE1, answer).build())
        .after(TO_UPLINK, Link::Uplink, out(A::POD_A, A::WORLD, third).build())
}

fn answered_tcp<A: Address>(kind: Kind) -> Kind {
    answered::<A>(kind, syn(CLIENT, SERVER), syn_ack(SERVER, CLIENT), ack(CLIENT, SERVER))
}

fn answered_udp<A: Address>(kind: Kind) -> Kind {
    answered::<A>(kind, udp(CLIENT, SERVER), udp(SERVER, CLIENT), udp(CLIENT, SERVER))
}

/// Returns packets to the world. The first packet of a flow takes the stack, and so do all packets
/// of a flow that the host's rules change.
fn to_world<A: Address>() -> Vec<Kind> {
    let way = named::<A>("to the world");
    let kind = |name: String, transport, path| from_pod(name, &from_a(A::WORLD, transport), path);
    let to_stack = |name: &str, transport| kind(format!("{way}, {name}"), transport, Path::ToStack);
    let past = |name, transport| kind(name, transport, Path::SnatOut).past_stack();
    let flow = flow_of(A::POD_A, A::WORLD, (CLIENT, SERVER), protocol::TCP);
    let known = |packet, transport| {
        let name = format!("{way}, to a known destination, TCP, {packet} packet");
        kind(name, transport, Path::SnatOut).destination_known(flow)
    };
    [
        vec![
            to_stack("TCP, first packet", syn(CLIENT, SERVER)),
            to_stack("UDP, first packet", udp(CLIENT, SERVER)),
            to_stack("TCP, later packet of no translated flow", ack(CLIENT, SERVER)),
            answered_tcp::<A>(to_stack("through the stack, TCP, later packet", ack(CLIENT, SERVER))),
            answered_udp::<A>(to_stack("through the stack, UDP, later packet", udp(CLIENT, SERVER))),
        ],
        vec![
            known("first", syn(CLIENT, SERVER)).first(),
            answered_tcp::<A>(known("later", ack(CLIENT, SERVER))).past_stack(),
        ],
        later(&format!("{way}, past the stack, TCP"), |name| {
            answered_tcp::<A>(past(name, ack(CLIENT, SERVER)))
        }),
        later(&format!("{way}, past the stack, UDP"), |name| {
            answered_udp::<A>(past(name, udp(CLIENT, SERVER)))
        }),
    ]
    .concat()
}

fn from_world<A: Address>() -> Vec<Kind> {
    let way = named::<A>("from the world");
    let kind = |name: String, transport| {
        from_uplink(name, arriving(A::WORLD, A::NODE1, transport).build(), Some(Path::SnatIn))
    };
    let to_stack = |name: &str, transport| kind(format!("{way}, through the stack, {name}"), transport);
    let past = |name, transport| kind(name, transport).past_stack();
    [
        vec![
            answered_tcp::<A>(to_stack("TCP, later packet", ack(SERVER, CLIENT))),
            answered_udp::<A>(to_stack("UDP, later packet", udp(SERVER, CLIENT))),
        ],
        later(&format!("{way}, past the stack, TCP"), |name| {
            answered_tcp::<A>(past(name, ack(SERVER, CLIENT)))
        }),
        later(&format!("{way}, past the stack, UDP"), |name| {
            answered_udp::<A>(past(name, udp(SERVER, CLIENT)))
        }),
    ]
    .concat()
}
