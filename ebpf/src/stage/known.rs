//! What is known of a flow that goes past the host stack: one lookup in place of all others, and of what they are asked of.
//!
//! An entry holds for a part of a second, and ends with the first change of anything that it was made of. What is no plain TCP or
//! UDP packet in the midst of its flow goes the whole way through the stages.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED, Endpoint, KNOWN_DESTINATION, KNOWN_DIRECT_IN,
        KNOWN_DIRECT_OUT, KNOWN_LOCAL, KNOWN_TUNNEL_IN, KNOWN_TUNNEL_OUT, KNOWN_WORLD_IN, KNOWN_WORLD_OUT,
        KnownFlow, Macs, Translation,
    },
    addr::{Addr, Be16},
    flow::protocol,
    nat::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    reason::Path,
};

use super::{local, tunnel_out};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ipv4, Plain, Skb, Way, decrement_ttl, readdress_destination, readdress_source},
    verdict::{Outcome, Verdict},
};

/// A pod's packet that is a plain one, and what is known of its flow. The sender has been found to be the one that the flow is known of.
#[inline(always)]
pub fn of_pod(ctx: &TcContext, generation: u32) -> Option<(Plain, &'static KnownFlow)> {
    let plain = Plain::of(ctx)?;
    let known = maps::known_flow(&plain.key(), generation)?;
    (known.from == ctx.ifindex() && plain.is_from(known.sender_mac)).then_some((plain, known))
}

/// A pod's packet to another one here ([`KNOWN_LOCAL`](podwire_common::abi::KNOWN_LOCAL)); [`Verdict::UNDECIDED`] when the entry has become
/// another flow's meanwhile.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(always)]
pub fn to_neighbour(ctx: &TcContext, plain: Plain, known: &KnownFlow) -> Outcome {
    let (to, macs) = (known.to, known.macs);
    if !maps::is_still(known, &plain.key()) {
        return Ok(Verdict::UNDECIDED);
    }
    plain.pass_on(ctx, macs)?;
    Ok(Verdict::redirect(Path::Local, local::into(ctx, to)))
}

/// A pod's packet that leaves the node; [`Verdict::UNDECIDED`] when it does not fit what is known.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &mut Ipv4, known: &KnownFlow) -> Outcome {
    let kind = known.kind;
    if packet.wire_length(ctx) > known.mtu {
        return Ok(Verdict::UNDECIDED);
    }
    let way = Way::known(known.to, known.next_hop, known.source, known.destination);
    let (source_port, inner) = (known.source_port, known.macs.destination);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    match kind {
        KNOWN_TUNNEL_OUT => tunnel_out::send_known(ctx, packet, &way, source_port, inner),
        KNOWN_WORLD_OUT => {
            readdress_source(ctx, packet, &way.source, source_port)?;
            Ok(Verdict::redirect(Path::SnatOut, way.leave(ctx)))
        }
        KNOWN_DIRECT_OUT => {
            decrement_ttl(ctx, &packet.headers, 0)?;
            Ok(Verdict::redirect(Path::DirectOut, way.leave(ctx)))
        }
        _ => Ok(Verdict::UNDECIDED),
    }
}

/// A packet as it arrived on an uplink, of direct routing or from the world; otherwise as [`from_pod`].
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_uplink(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    let Some(known) = of(ctx, packet) else {
        return Ok(Verdict::UNDECIDED);
    };
    if known.kind == KNOWN_DIRECT_IN {
        if known.sender_mac != packet.headers.source_mac {
            return Ok(Verdict::UNDECIDED);
        }
        return into_pod(ctx, packet, known, Path::DirectIn);
    }
    if known.kind != KNOWN_WORLD_IN || packet.wire_length(ctx) > known.mtu {
        return Ok(Verdict::UNDECIDED);
    }
    let (to, macs) = (known.to, known.macs);
    let (destination, port) = (known.destination, known.destination_port);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    packet.headers.set_macs(macs);
    readdress_destination(ctx, packet, &destination, port)?;
    Ok(Verdict::redirect(Path::SnatIn, local::into(ctx, to)))
}

/// The link and the addresses into the pod that an inner packet from another node is for.
#[inline(always)]
pub fn from_tunnel(ctx: &TcContext, packet: &mut Ipv4, sender: &Addr) -> Option<(u32, Macs)> {
    let known = of(ctx, packet)?;
    if known.kind != KNOWN_TUNNEL_IN || known.source != *sender {
        return None;
    }
    let way = (known.to, known.macs);
    is_still(known, packet).then_some(way)
}

#[inline(always)]
fn into_pod(ctx: &TcContext, packet: &mut Ipv4, known: &KnownFlow, path: Path) -> Outcome {
    let (to, macs) = (known.to, known.macs);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    local::send(ctx, &mut packet.headers, macs, to, path)
}

/// Where a pod's connection leads to which the host's rules let all others pass as they were, the last one asked not long ago.
pub struct Destination {
    /// The uplink.
    pub uplink: u32,
    /// Network order, 0 when not known.
    pub next_hop: u32,
    /// What the pod's address becomes.
    pub source: Addr,
    /// When the rules were asked: jiffies.
    pub asked: u32,
}

/// What is known of all of a pod's connections to the address and port that a plain TCP packet goes to, or one that begins or ends a
/// connection.
#[inline(always)]
pub fn destination_of(ctx: &TcContext, packet: &Ipv4) -> Option<Destination> {
    let headers = &packet.headers;
    let is_odd = packet.tcp_flags & TCP_SYN != 0 && packet.tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST) != 0;
    if headers.protocol != protocol::TCP || !packet.is_whole() || headers.ttl <= 1 || is_odd {
        return None;
    }
    let key = packet.flow.destination_key();
    let known = maps::known_flow(&key, packet.generation)?;
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

/// What is known of a packet's flow; otherwise the packet notes since when it is judged.
#[inline(always)]
fn of(ctx: &TcContext, packet: &mut Ipv4) -> Option<&'static KnownFlow> {
    packet.generation = maps::generation();
    if !is_plain(packet) || packet.headers.ttl <= 1 {
        return None;
    }
    maps::known_flow(&packet.flow.key(), packet.generation).filter(|known| known.from == ctx.ifindex())
}

/// Whether an entry is still that of the packet's flow, after it was read.
#[inline(always)]
fn is_still(known: &KnownFlow, packet: &Ipv4) -> bool {
    maps::is_still(known, &packet.flow.key())
}

/// Whether a packet is TCP or UDP in the midst of its flow, without fragments and options.
#[inline(always)]
fn is_plain(packet: &Ipv4) -> bool {
    packet.is_whole() && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
}

/// Whether packets into a pod have to pass the queue of its link: what is known leads past it.
#[inline(always)]
fn is_limited(to: &Endpoint) -> bool {
    to.flags & ENDPOINT_INGRESS_LIMITED != 0
}

/// Whether each packet of a pod's has to be looked at: what is known does not ask for its limit.
#[inline(always)]
fn is_guarded(from: &Endpoint) -> bool {
    from.flags & ENDPOINT_EGRESS_LIMITED != 0
}

/// Remembers that a flow leads from a pod to another one here.
#[inline(always)]
pub fn remember_local(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, to: &Endpoint) {
    if !is_guarded(from) {
        remember_in(ctx, packet, to, KNOWN_LOCAL, &Addr::UNSPECIFIED);
    }
}

/// Remembers that a flow leads from a pod, or from another node, into a pod. `sender`: the outer source, of a packet out of the tunnel.
#[inline(always)]
pub fn remember_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, kind: u8, sender: &Addr) {
    if is_plain(packet) && !is_limited(to) {
        add_in(ctx, packet, to, kind, sender);
        check_again(packet);
    }
}

#[inline(never)]
fn add_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, kind: u8, sender: &Addr) {
    let mut known = entry(ctx, packet, kind);
    known.source = *sender;
    into_endpoint(&mut known, to);
    maps::remember_flow(&known);
}

/// Remembers by which way a pod's flow leaves by direct routing. `mtu` is the largest IP packet of the pod's that was seen to fit it.
#[inline(always)]
pub fn remember_direct_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, mtu: u32) {
    if is_plain(packet) && !is_guarded(from) {
        add_direct_out(ctx, packet, way, mtu);
        check_again(packet);
    }
}

#[inline(never)]
fn add_direct_out(ctx: &TcContext, packet: &Ipv4, way: &Way, mtu: u32) {
    let mut known = entry(ctx, packet, KNOWN_DIRECT_OUT);
    out_by(&mut known, way, mtu);
    maps::remember_flow(&known);
}

/// As [`remember_direct_out`], through the tunnel, with the link addresses of the inner frames.
#[inline(always)]
pub fn remember_tunnel_out(
    ctx: &TcContext,
    packet: &Ipv4,
    from: &Endpoint,
    way: &Way,
    inner: Macs,
    mtu: u32,
) {
    if is_plain(packet) && !is_guarded(from) {
        add_tunnel_out(ctx, packet, way, inner, mtu);
        check_again(packet);
    }
}

#[inline(never)]
fn add_tunnel_out(ctx: &TcContext, packet: &Ipv4, way: &Way, inner: Macs, mtu: u32) {
    let mut known = entry(ctx, packet, KNOWN_TUNNEL_OUT);
    out_by(&mut known, way, mtu);
    known.macs = inner;
    known.source = way.source;
    known.destination = way.destination;
    known.source_port = packet.flow.tunnel_source_port();
    maps::remember_flow(&known);
}

/// Remembers by which way a pod's flow to the world leaves, and under which address; of a flow's first plain packet, where it leads.
#[inline(always)]
pub fn remember_world_out(
    ctx: &TcContext,
    packet: &Ipv4,
    from: &Endpoint,
    way: &Way,
    half: &TranslationEntry,
) {
    if !is_plain(packet) || is_guarded(from) {
        return;
    }
    match half.mark_long() {
        true => add_world_out(ctx, packet, way, half.get()),
        false => add_destination(ctx, packet, way, half.get()),
    }
}

#[inline(never)]
fn add_world_out(ctx: &TcContext, packet: &Ipv4, way: &Way, to: &Translation) {
    let mut known = entry(ctx, packet, KNOWN_WORLD_OUT);
    out_by(&mut known, way, way.length);
    known.source = to.source;
    known.source_port = to.source_port;
    remember_world(packet, &known);
}

#[inline(never)]
fn add_destination(ctx: &TcContext, packet: &Ipv4, way: &Way, half: &Translation) {
    // What they said of this connection too long ago, they need not say of another.
    if maps::asks_each_connection()
        || packet.flow.protocol != protocol::TCP
        || !maps::is_fresh(half.asked)
        || maps::is_not_masqueraded(&packet.flow.destination)
    {
        return;
    }
    let mut known = entry(ctx, packet, KNOWN_DESTINATION);
    known.key = packet.flow.destination_key();
    known.asked = half.asked;
    out_by(&mut known, way, way.length);
    known.source = half.source;
    maps::remember_flow(&known);
}

/// Adds an entry, unless the translation has gone meanwhile or was taken back to the stack: who did that has removed the entry before it
/// was there.
#[inline(always)]
fn remember_world(packet: &Ipv4, known: &KnownFlow) {
    maps::remember_flow(known);
    if maps::translation(&packet.flow).is_none_or(|half| half.get().past_stack == 0) {
        maps::forget_known(known);
    }
}

/// Remembers which pod replies from the world are for.
#[inline(never)]
pub fn remember_world_in(ctx: &TcContext, packet: &Ipv4, endpoint: &Endpoint, half: &TranslationEntry) {
    if !is_plain(packet) || is_limited(endpoint) || !half.mark_long() {
        return;
    }
    let to = half.get();
    let mut known = entry(ctx, packet, KNOWN_WORLD_IN);
    known.mtu = endpoint.mtu;
    into_endpoint(&mut known, endpoint);
    known.destination = to.destination;
    known.destination_port = to.destination_port;
    remember_world(packet, &known);
}

#[inline(always)]
fn out_by(known: &mut KnownFlow, way: &Way, mtu: u32) {
    known.to = way.ifindex;
    known.next_hop = way.next_hop();
    known.mtu = mtu;
}

#[inline(always)]
fn into_endpoint(known: &mut KnownFlow, endpoint: &Endpoint) {
    known.to = endpoint.ifindex;
    known.macs = endpoint.macs();
}

#[inline(always)]
fn entry(ctx: &TcContext, packet: &Ipv4, kind: u8) -> KnownFlow {
    // First: what is read before a helper call takes its place on the stack during the call.
    let asked = maps::jiffies();
    KnownFlow {
        key: packet.flow.key(),
        generation: packet.generation,
        asked,
        from: ctx.ifindex(),
        to: 0,
        kind,
        reserved: 0,
        sender_mac: packet.headers.source_mac,
        macs: Macs::default(),
        next_hop: 0,
        mtu: 0,
        source: Addr::UNSPECIFIED,
        destination: Addr::UNSPECIFIED,
        source_port: Be16::ZERO,
        destination_port: Be16::ZERO,
    }
}

/// What would have led elsewhere may have come while the packet was judged: who has added that has removed the entry before it was there.
#[inline(never)]
fn check_again(packet: &Ipv4) {
    let flow = &packet.flow;
    if maps::is_stack_flow(flow)
        || maps::translation(flow).is_some()
        || (flow.protocol != protocol::TCP && maps::is_stack_flow(&flow.reversed()))
    {
        maps::forget_flow(flow);
    }
}
