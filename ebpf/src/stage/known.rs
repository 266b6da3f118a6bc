//! What is known of a flow that goes past the host stack: one lookup in place of all others, and of what they are asked of.
//!
//! An entry holds for a part of a second, and ends with the first change of anything that it was made of. What is no plain TCP or
//! UDP packet in the midst of its flow goes the whole way through the stages.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED, Endpoint, KNOWN_DESTINATION, KNOWN_DIRECT_IN,
        KNOWN_DIRECT_OUT, KNOWN_LOCAL, KNOWN_TUNNEL_IN, KNOWN_TUNNEL_OUT, KNOWN_WORLD_IN, KNOWN_WORLD_OUT,
        KnownFlow, Macs, Node, Translation,
    },
    addr::{Addr, Be16},
    epoch::{self, FLOW_SLOTS},
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
pub fn of_pod(ctx: &TcContext) -> Option<(Plain, &'static KnownFlow)> {
    let plain = Plain::of(ctx)?;
    let known = maps::known_flow(&plain.key())?;
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
    let known = maps::known_flow(&key)?;
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

/// What is known of a packet's flow.
#[inline(always)]
fn of(ctx: &TcContext, packet: &Ipv4) -> Option<&'static KnownFlow> {
    if !is_plain(packet) || packet.headers.ttl <= 1 {
        return None;
    }
    maps::known_flow(&packet.flow.key()).filter(|known| known.from == ctx.ifindex())
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

/// Learns that a flow leads from a pod to another one here.
#[inline(always)]
pub fn learn_local(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, to: &Endpoint) {
    if !is_guarded(from) && is_learnable_in(packet, to) {
        add_local(ctx, packet, from, to);
        check_again(packet);
    }
}

#[inline(never)]
fn add_local(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, to: &Endpoint) {
    let Some(known) = entry(ctx, packet, KNOWN_LOCAL, epoch::of_neighbours(from.id, to.id)) else { return };
    into_endpoint(known, to);
    maps::learn_flow(known, packet.generation);
}

/// Learns that a flow leads from another node into a pod: inside VXLAN, or by direct routing. `node`: the sender's tunnel
/// endpoint.
#[inline(always)]
pub fn learn_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, kind: u8, node: &Addr) {
    if is_learnable_in(packet, to) {
        add_in(ctx, packet, to, kind, node);
        check_again(packet);
    }
}

#[inline(never)]
fn add_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, kind: u8, node: &Addr) {
    let Some(known) = entry(ctx, packet, kind, epoch::with_node(to.id, node, &packet.flow.source)) else {
        return;
    };
    if kind == KNOWN_TUNNEL_IN {
        known.source = *node;
    }
    into_endpoint(known, to);
    maps::learn_flow(known, packet.generation);
}

#[inline(always)]
fn is_learnable_in(packet: &Ipv4, to: &Endpoint) -> bool {
    is_plain(packet) && !is_limited(to)
}

/// Learns by which way a pod's flow leaves by direct routing to a node, whose packets of this size were seen to fit it.
#[inline(always)]
pub fn learn_direct_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, node: &Node, way: &Way) {
    if is_plain(packet) && !is_guarded(from) {
        add_direct_out(ctx, packet, from, node, way);
        check_again(packet);
    }
}

#[inline(never)]
fn add_direct_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, node: &Node, way: &Way) {
    let slots = epoch::with_node(from.id, &node.tunnel_endpoint, &way.destination);
    let Some(known) = entry(ctx, packet, KNOWN_DIRECT_OUT, slots) else { return };
    out_by(known, way, way.length);
    maps::learn_flow(known, packet.generation);
}

/// As [`learn_direct_out`], through the tunnel, with the link addresses of the inner frames.
#[inline(always)]
pub fn learn_tunnel_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, inner: Macs, mtu: u32) {
    if is_plain(packet) && !is_guarded(from) {
        add_tunnel_out(ctx, packet, from, way, &Inner { macs: inner, mtu });
        check_again(packet);
    }
}

/// Inner frames, as they go through the tunnel.
struct Inner {
    macs: Macs,
    mtu: u32,
}

#[inline(never)]
fn add_tunnel_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, inner: &Inner) {
    let slots = epoch::with_node(from.id, &way.destination, &packet.flow.destination);
    let Some(known) = entry(ctx, packet, KNOWN_TUNNEL_OUT, slots) else { return };
    out_by(known, way, inner.mtu);
    known.macs = inner.macs;
    known.source = way.source;
    known.destination = way.destination;
    known.source_port = packet.flow.tunnel_source_port();
    maps::learn_flow(known, packet.generation);
}

/// Learns by which way a pod's flow to the world leaves, and under which address; of a flow's first plain packet, where it leads.
#[inline(always)]
pub fn learn_world_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, half: &TranslationEntry) {
    if !is_plain(packet) || is_guarded(from) {
        return;
    }
    if half.mark_long() {
        add_world_out(ctx, packet, from, way, half.get());
    } else if tells_of_destination(packet, half.get()) {
        add_destination(ctx, packet, from, way, half.get());
    }
}

/// Whether what the host's rules let a flow do is also true of the pod's other connections to the same port.
// Not in `add_destination`, beside the entry on its stack.
#[inline(always)]
fn tells_of_destination(packet: &Ipv4, half: &Translation) -> bool {
    // What they said of this connection too long ago, they need not say of another.
    !maps::asks_each_connection()
        && packet.flow.protocol == protocol::TCP
        && maps::is_fresh(half.asked)
        && !maps::is_not_masqueraded(&packet.flow.destination)
}

#[inline(never)]
fn add_world_out(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, to: &Translation) {
    let slots = epoch::with_world(from.id, way.ifindex, &packet.flow.destination);
    let Some(known) = entry(ctx, packet, KNOWN_WORLD_OUT, slots) else { return };
    out_by(known, way, way.length);
    known.source = to.source;
    known.source_port = to.source_port;
    learn_world(packet, known);
}

#[inline(never)]
fn add_destination(ctx: &TcContext, packet: &Ipv4, from: &Endpoint, way: &Way, half: &Translation) {
    let slots = epoch::with_world(from.id, way.ifindex, &packet.flow.destination);
    let Some(known) = entry(ctx, packet, KNOWN_DESTINATION, slots) else { return };
    known.key = packet.flow.destination_key();
    known.asked = half.asked;
    out_by(known, way, way.length);
    known.source = half.source;
    maps::learn_flow(known, packet.generation);
}

/// Adds an entry, unless the translation has gone meanwhile or was taken back to the stack: the program that did so removed the entry
/// before it was there.
#[inline(always)]
fn learn_world(packet: &Ipv4, known: &mut KnownFlow) {
    maps::learn_flow(known, packet.generation);
    if maps::translation(&packet.flow).is_none_or(|half| half.get().past_stack == 0) {
        maps::forget_known(known);
    }
}

/// Learns which pod replies from the world are for.
#[inline(always)]
pub fn learn_world_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, half: &TranslationEntry) {
    if is_learnable_in(packet, to) && half.mark_long() {
        add_world_in(ctx, packet, to, half.get());
    }
}

#[inline(never)]
fn add_world_in(ctx: &TcContext, packet: &Ipv4, to: &Endpoint, half: &Translation) {
    let slots = epoch::with_world(to.id, ctx.ifindex(), &packet.flow.source);
    let Some(known) = entry(ctx, packet, KNOWN_WORLD_IN, slots) else { return };
    known.mtu = to.mtu;
    into_endpoint(known, to);
    known.destination = half.destination;
    known.destination_port = half.destination_port;
    learn_world(packet, known);
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

/// An entry of a packet's flow, to which the way that its packets go is missing.
#[inline(always)]
fn entry(
    ctx: &TcContext,
    packet: &Ipv4,
    kind: u8,
    slots: [u16; FLOW_SLOTS],
) -> Option<&'static mut KnownFlow> {
    let known = maps::new_flow()?;
    *known = KnownFlow {
        key: packet.flow.key(),
        epochs: 0,
        asked: maps::jiffies(),
        slots,
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
    };
    Some(known)
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
