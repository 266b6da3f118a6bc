//! Packets that are dropped, but not silently: the client learns at once that nothing answers.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::NextHop,
    flow::protocol,
    reason::{Drop, Hook},
};

use super::local;
use crate::{
    maps,
    packet::{Fragment, Ip, Ipv4, Ipv6, Parsed, Place, Skb, checksum_left, ethertype, leave, reset},
};

/// Returns whether a reason asks for an answer.
#[inline(always)]
pub fn is_answered(reason: u32) -> bool {
    reason == Drop::NoBackend as u32 || reason == Drop::ServicePortUnknown as u32
}

/// Answers a dropped packet in the name of its destination: TCP by a reset, UDP by the ICMP error
/// "port unreachable". Returns the TC code that sends the answer back by the link that the packet came
/// by. `None`: the packet must not be answered, or cannot be.
///
/// kube-proxy answers TCP by the ICMP error, too. But a pod's SYN comes here while the kernel still
/// holds the lock of the socket that sends it. Then the kernel notes an ICMP error only, and
/// `connect` fails when the SYN is sent again, a second later. A reset waits until the lock is free.
///
/// One packet has one answer, of at most twice its bytes. Of pods, no limit is needed: `from_pod` has
/// checked the source, so a pod floods nobody but itself. A client behind the tunnel gets no answer.
#[inline(always)]
pub fn answer(ctx: &TcContext, hook: u32) -> Option<i32> {
    let is_of_pod = hook == Hook::FromPod as u32;
    if !is_of_pod && (hook != Hook::FromUplink as u32 || !maps::may_answer()) {
        return None;
    }
    let answered = match ctx.ethertype() {
        ethertype::IPV6 => answer_in::<Ipv6>(ctx),
        _ => answer_in::<Ipv4>(ctx),
    };
    answered.ok()?;
    Some(match is_of_pod {
        true => local::into(ctx, ctx.ifindex()),
        false => leave(ctx, ctx.ifindex(), &NextHop::UNKNOWN),
    })
}

// Not inlined: the packets of both families share the stack.
#[inline(never)]
fn answer_in<I: Ip>(ctx: &TcContext) -> Result<(), Drop> {
    let mut place = Place::<I>::new();
    let packet = place.load(ctx)?.parse(ctx).map_err(Drop::from)?;
    match packet.flow.protocol {
        protocol::TCP if packet.begins_connection() && packet.is_whole() => {
            reset(ctx, packet, is_checksum_left(ctx))
        }
        protocol::UDP if can_be_told(packet) => answer_datagram(ctx, packet),
        _ => Err(Drop::NoBackend),
    }
}

// Not inlined: what it reads would take stack in the caller.
#[inline(never)]
fn is_checksum_left(ctx: &TcContext) -> bool {
    checksum_left(ctx, maps::skb_layout()).is_ok_and(|left| left.is_some())
}

// Not inlined: the address would take stack in the caller.
#[inline(never)]
fn answer_datagram<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> Result<(), Drop> {
    packet.answer_as_destination(ctx, I::PORT_UNREACHABLE, 0)
}

/// Returns whether an ICMP error may tell the sender of a datagram. A later fragment has no ports, so
/// the sender could not tell which socket it is about (RFC 1122 section 3.2.2).
#[inline(always)]
fn can_be_told<I: Ip>(packet: &Parsed<I>) -> bool {
    !packet.is_error && !matches!(packet.fragment_part(), Fragment::Later) && packet.is_quotable()
}
