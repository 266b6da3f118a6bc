//! What the stages have found out becomes known.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED, Endpoint, KNOWN_DESTINATION, KNOWN_DIRECT_OUT,
        KNOWN_LOCAL, KNOWN_TUNNEL_IN, KNOWN_TUNNEL_OUT, KNOWN_WORLD_IN, KNOWN_WORLD_OUT, KnownFlow, Macs,
        Node, Translation,
    },
    addr::{Addr, Be16},
    epoch::{self, FLOW_SLOTS},
    flow::protocol,
};

use super::lookup::is_plain;
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ipv4, Skb, Way},
};

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
