//! Packets of flows that can have an entry in `FLOWS`, of three kinds:
//!
//! - the first packet of a flow
//! - a later one that a program judges again
//! - one of a known flow

use podwire_common::flow::protocol;
use podwire_common::names::programs::{FROM_UPLINK, TO_UPLINK};
use podwire_common::reason::Path;

use crate::fixture::{NODE1, POD_A, POD_B, REMOTE_POD, WORLD, flow_of};
use crate::kind::{Kind, Link};
use crate::kinds::{
    CLIENT, SERVER, ack, arriving, from_a, from_pod, from_uplink, out, syn, syn_ack, tunnelled,
};
use crate::packets::{Packet, Transport, udp};

/// Returns all of them.
pub fn kinds() -> Vec<Kind> {
    [
        flows("same node", |name, transport| from_pod(name, &from_a(POD_B, transport), Path::Local)),
        flows("same node, with hostPorts", |name, transport| {
            from_pod(name, &from_a(POD_B, transport), Path::Local).with_host_port()
        }),
        flows("VXLAN", |name, transport| from_pod(name, &from_a(REMOTE_POD, transport), Path::TunnelOut)),
        flows("direct", |name, transport| {
            from_pod(name, &from_a(REMOTE_POD, transport), Path::DirectOut).direct()
        }),
        flows("VXLAN", |name, transport| {
            from_uplink(name, tunnelled(&Packet::new(REMOTE_POD, POD_A, transport)), Some(Path::TunnelIn))
        }),
        flows("direct", |name, transport| {
            from_uplink(name, arriving(REMOTE_POD, POD_A, transport).build(), Some(Path::DirectIn)).direct()
        }),
        to_world(),
        from_world(),
    ]
    .concat()
}

/// Returns the kinds of a TCP flow and of a UDP flow.
fn flows(way: &str, kind: impl Fn(String, Transport) -> Kind) -> Vec<Kind> {
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
fn answered(kind: Kind, request: Transport, answer: Transport, third: Transport) -> Kind {
    kind.after(TO_UPLINK, Link::Uplink, out(POD_A, WORLD, request).build())
        .after(FROM_UPLINK, Link::Uplink, arriving(WORLD, NODE1, answer).build())
        .after(TO_UPLINK, Link::Uplink, out(POD_A, WORLD, third).build())
}

fn answered_tcp(kind: Kind) -> Kind {
    answered(kind, syn(CLIENT, SERVER), syn_ack(SERVER, CLIENT), ack(CLIENT, SERVER))
}

fn answered_udp(kind: Kind) -> Kind {
    answered(kind, udp(CLIENT, SERVER), udp(SERVER, CLIENT), udp(CLIENT, SERVER))
}

/// Returns packets to the world. The first packet of a flow takes the stack, and so do all packets
/// of a flow that the host's rules change.
fn to_world() -> Vec<Kind> {
    let kind = |name: String, transport, path| from_pod(name, &from_a(WORLD, transport), path);
    let to_stack = |name: &str, transport| kind(format!("to the world, {name}"), transport, Path::ToStack);
    let past = |name, transport| kind(name, transport, Path::SnatOut).past_stack();
    let flow = flow_of(POD_A, WORLD, (CLIENT, SERVER), protocol::TCP);
    let known = |packet, transport| {
        let name = format!("to the world, to a known destination, TCP, {packet} packet");
        kind(name, transport, Path::SnatOut).destination_known(flow)
    };
    [
        vec![
            to_stack("TCP, first packet", syn(CLIENT, SERVER)),
            to_stack("UDP, first packet", udp(CLIENT, SERVER)),
            to_stack("TCP, later packet of no translated flow", ack(CLIENT, SERVER)),
            answered_tcp(to_stack("through the stack, TCP, later packet", ack(CLIENT, SERVER))),
            answered_udp(to_stack("through the stack, UDP, later packet", udp(CLIENT, SERVER))),
        ],
        vec![
            known("first", syn(CLIENT, SERVER)).first(),
            answered_tcp(known("later", ack(CLIENT, SERVER))).past_stack(),
        ],
        later("to the world, past the stack, TCP", |name| answered_tcp(past(name, ack(CLIENT, SERVER)))),
        later("to the world, past the stack, UDP", |name| answered_udp(past(name, udp(CLIENT, SERVER)))),
    ]
    .concat()
}

fn from_world() -> Vec<Kind> {
    let kind = |name: String, transport| {
        from_uplink(name, arriving(WORLD, NODE1, transport).build(), Some(Path::SnatIn))
    };
    let to_stack =
        |name: &str, transport| kind(format!("from the world, through the stack, {name}"), transport);
    let past = |name, transport| kind(name, transport).past_stack();
    [
        vec![
            answered_tcp(to_stack("TCP, later packet", ack(SERVER, CLIENT))),
            answered_udp(to_stack("UDP, later packet", udp(SERVER, CLIENT))),
        ],
        later("from the world, past the stack, TCP", |name| answered_tcp(past(name, ack(SERVER, CLIENT)))),
        later("from the world, past the stack, UDP", |name| answered_udp(past(name, udp(SERVER, CLIENT)))),
    ]
    .concat()
}
