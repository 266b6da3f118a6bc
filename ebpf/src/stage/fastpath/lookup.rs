//! Lookups of known flows.

use core::borrow::Borrow as _;

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FAMILY_IPV4, FLOW_IN_TUNNEL, NextHop},
    addr::Addr,
    flow::{FlowAddr, protocol},
    nat::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use super::{Entry, Key, KnownIp, send::IntoPod};
use crate::{
    maps,
    packet::{Ip, Parsed, Plain, Skb},
};

/// Returns a pod's packet, its flow's key, and what is known of the flow. Returns `None` unless the
/// packet is plain, and comes by the link and from the link address in the flow's entry.
#[inline(always)]
pub fn of_pod<I: KnownIp>(ctx: &TcContext) -> Option<(Plain<I>, Key<I>, &'static Entry<I>)> {
    let plain = Plain::<I>::of(ctx)?;
    let key = plain.key();
    let known = maps::known_flow(&key)?;
    (known.from == ctx.ifindex() && plain.is_from(&known.sender_mac)).then_some((plain, key, known))
}

/// Returns how an inner packet from another node reaches its pod, if its flow is known.
#[inline(always)]
pub fn from_tunnel<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    sender: &Addr,
) -> Option<IntoPod<I::FlowAddr>> {
    let key = I::FlowAddr::key(&packet.flow);
    let known = of(ctx, packet, key.borrow())?;
    if known.flags & FLOW_IN_TUNNEL == 0 || known.tunnel.there != *sender {
        return None;
    }
    let way = IntoPod::of::<I>(known);
    maps::is_still_in_place(known, key.borrow()).then_some(way)
}

/// The known destination of a pod's connection: the host's rules lately let other connections to it
/// pass unchanged.
pub struct Destination<A> {
    /// The uplink to leave by.
    pub uplink: u32,
    /// The router, or the destination itself.
    pub next_hop: NextHop,
    /// The address that replaces the pod's.
    pub source: A,
    /// When the host's rules were asked: jiffies.
    pub asked: u32,
}

/// Returns what is known of all connections from a pod to one address and port. The packet is plain
/// TCP, or begins or ends a connection.
#[inline(always)]
pub fn destination_of<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>) -> Option<Destination<I::FlowAddr>> {
    if I::FAMILY == FAMILY_IPV4 { find_destination(ctx, packet) } else { find_apart(ctx, packet) }
}

// Not inlined: the key would take stack in the caller.
#[inline(never)]
fn find_apart<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>) -> Option<Destination<I::FlowAddr>> {
    find_destination(ctx, packet)
}

#[inline(always)]
fn find_destination<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>) -> Option<Destination<I::FlowAddr>> {
    let headers = &packet.headers;
    let is_odd = packet.tcp_flags & TCP_SYN != 0 && packet.tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST) != 0;
    if packet.flow.protocol != protocol::TCP || !packet.is_whole() || headers.ttl() <= 1 || is_odd {
        return None;
    }
    let key = I::FlowAddr::destination_key(&packet.flow);
    let known = maps::known_flow::<I::FlowAddr>(&key)?;
    if known.from != ctx.ifindex()
        || known.sender_mac != headers.source_mac
        || packet.wire_length(ctx) > known.mtu
    {
        return None;
    }
    let found =
        Destination { uplink: known.to, next_hop: known.next_hop, source: known.source, asked: known.asked };
    maps::is_still(known, &key).then_some(found)
}

/// Returns the known flow of a packet. `key`: the flow's key.
#[inline(always)]
pub(super) fn of<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, key: &Key<I>) -> Option<&'static Entry<I>> {
    if !is_plain(packet) || packet.headers.ttl() <= 1 {
        return None;
    }
    maps::known_flow(key).filter(|known: &&Entry<I>| known.from == ctx.ifindex())
}

/// Returns whether a packet is TCP or UDP in the middle of its flow, without fragments, IP options
/// and extension headers.
#[inline(always)]
pub(super) fn is_plain<I: Ip>(packet: &Parsed<I>) -> bool {
    packet.is_whole() && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
}
