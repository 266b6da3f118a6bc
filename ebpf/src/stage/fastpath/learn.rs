//! Learning: a flow that the stages have judged becomes a known flow.

use core::borrow::Borrow as _;

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        ENDPOINT_EGRESS_LIMITED, ENDPOINT_INGRESS_LIMITED, Endpoint, FAMILY_IPV4, FLOW_IN_TUNNEL,
        FLOW_OF_SENDER, FLOW_REWRITES_DESTINATION, FLOW_REWRITES_SOURCE, KnownFlow, LEAVES_BY_UPLINK,
        LEAVES_IN_TUNNEL, LEAVES_IN_TUNNEL6, LEAVES_INTO_POD, Macs, NextHop, Node, Translation, Tunnel,
    },
    addr::{Addr, Be16},
    epoch::{self, FLOW_SLOTS},
    flow::{FlowAddr, protocol},
    reason::Path,
};

use super::{
    super::{ends, outer},
    Entry, KnownIp,
    lookup::is_plain,
};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ip, Parsed, Skb, Way},
};

/// Returns whether packets to a pod must pass the queue of its link. Packets of known flows bypass
/// that queue.
#[inline(always)]
fn is_limited(to: &Endpoint) -> bool {
    to.flags & ENDPOINT_INGRESS_LIMITED != 0
}

/// Returns whether the programs must check each packet of a pod against its limit. Packets of known
/// flows are not checked.
#[inline(always)]
fn is_guarded(from: &Endpoint) -> bool {
    from.flags & ENDPOINT_EGRESS_LIMITED != 0
}

/// Learns a flow from a pod to another pod of this node.
#[inline(always)]
pub fn learn_local<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, from: &Endpoint, to: &Endpoint) {
    if !is_guarded(from) && is_learnable_in(packet, to) {
        add_local(ctx, packet, from, to);
        check_again(packet);
    }
}

#[inline(never)]
fn add_local<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, from: &Endpoint, to: &Endpoint) {
    let slots = epoch::of_neighbours(from.id, to.id);
    let Some(known) = entry(ctx, packet, slots, Path::Local) else { return };
    known.flags = FLOW_OF_SENDER;
    into_endpoint(known, to);
    maps::learn_flow(known, packet.generation);
}

/// Learns a flow from a node to a pod by direct routing.
#[inline(always)]
pub fn learn_direct_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, from: &Node) {
    if is_learnable_in(packet, to) {
        add_direct_in(ctx, packet, to, from);
        check_again(packet);
    }
}

#[inline(never)]
fn add_direct_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, from: &Node) {
    let slots = epoch::with_node(to.id, &from.tunnel_endpoint, &packet.flow.source);
    let Some(known) = entry(ctx, packet, slots, Path::DirectIn) else { return };
    known.flags = FLOW_OF_SENDER;
    into_endpoint(known, to);
    maps::learn_flow(known, packet.generation);
}

/// Learns a flow that comes out of the tunnel to a pod. `sender`: the outer source.
#[inline(always)]
pub fn learn_tunnel_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, sender: &Addr) {
    if is_learnable_in(packet, to) {
        add_tunnel_in(ctx, packet, to, sender);
        check_again(packet);
    }
}

#[inline(never)]
fn add_tunnel_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, sender: &Addr) {
    let slots = epoch::with_node(to.id, sender, &packet.flow.source);
    let Some(known) = entry(ctx, packet, slots, Path::TunnelIn) else { return };
    known.flags = FLOW_IN_TUNNEL;
    known.tunnel.there = *sender;
    into_endpoint(known, to);
    maps::learn_flow(known, packet.generation);
}

#[inline(always)]
fn is_learnable_in<I: Ip>(packet: &Parsed<I>, to: &Endpoint) -> bool {
    is_plain(packet) && !is_limited(to)
}

/// Learns the route of a pod's flow to a node by direct routing. The caller has checked that
/// packets of this size fit the route.
#[inline(always)]
pub fn learn_direct_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    node: &Node,
    way: &Way,
) {
    if is_plain(packet) && !is_guarded(from) {
        add_direct_out(ctx, packet, from, node, way);
        check_again(packet);
    }
}

#[inline(never)]
fn add_direct_out<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, from: &Endpoint, node: &Node, way: &Way) {
    let slots = epoch::with_node(from.id, &node.tunnel_endpoint, &way.destination);
    let Some(known) = entry(ctx, packet, slots, Path::DirectOut) else { return };
    known.flags = FLOW_OF_SENDER;
    out_by(known, way, way.length);
    maps::learn_flow(known, packet.generation);
}

/// Learns the route of a pod's flow through the tunnel to a node.
#[inline(always)]
pub fn learn_tunnel_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    way: &Way,
    node: &Node,
) {
    if is_plain(packet) && !is_guarded(from) {
        add_tunnel_out(ctx, packet, from, way, node);
        check_again(packet);
    }
}

#[inline(never)]
fn add_tunnel_out<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, from: &Endpoint, way: &Way, node: &Node) {
    let slots = epoch::with_node(from.id, &way.destination, &packet.flow.destination);
    let Some(known) = entry(ctx, packet, slots, Path::TunnelOut) else { return };
    known.flags = FLOW_OF_SENDER;
    into_tunnel(known, packet, way, node);
    maps::learn_flow(known, packet.generation);
}

#[inline(always)]
fn into_tunnel<I: Ip>(known: &mut KnownFlow<I::FlowAddr>, packet: &Parsed<I>, way: &Way, node: &Node) {
    out_by(known, way, (way.length - outer::overhead(node)).min(node.mtu));
    known.leaves = if outer::is_over_ipv6(node) { LEAVES_IN_TUNNEL6 } else { LEAVES_IN_TUNNEL };
    known.tunnel.here = way.source;
    known.tunnel.there = way.destination;
    known.tunnel.source_port = packet.flow.tunnel_source_port();
    known.tunnel.inner_mac = outer::inner_destination(node);
}

/// Learns the route of a pod's flow to the world, and its source address. From a flow's first plain
/// packet it learns only the destination.
#[inline(always)]
pub fn learn_world_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    way: &Way,
    half: &TranslationEntry,
) {
    if !is_plain(packet) || is_guarded(from) {
        return;
    }
    if half.mark_long() {
        add_world_out(ctx, packet, from, way, half.get());
    } else if tells_of_destination(packet, half.get()) {
        add_destination(ctx, packet, from, way, half.get());
    }
}

/// Returns whether the host's rules would treat the pod's other connections to the same address and
/// port as they treat this one.
#[inline(always)]
fn tells_of_destination<I: Ip>(packet: &Parsed<I>, half: &Translation) -> bool {
    // An old verdict of the rules on this connection need not hold for another connection.
    !maps::asks_each_connection()
        && packet.flow.protocol == protocol::TCP
        && maps::is_fresh(half.asked)
        && !maps::is_not_masqueraded(&packet.flow.destination)
}

#[inline(never)]
fn add_world_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    way: &Way,
    to: &Translation,
) {
    let Some(known) = to_world(ctx, packet, from, way, to) else { return };
    known.source_port = to.source_port;
    learn_world(packet, known);
}

#[inline(never)]
fn add_destination<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    way: &Way,
    to: &Translation,
) {
    let Some(known) = to_world(ctx, packet, from, way, to) else { return };
    known.key = I::FlowAddr::destination_key(&packet.flow);
    known.asked = to.asked;
    known.source_port = Be16::ZERO;
    maps::learn_flow(known, packet.generation);
}

/// Returns an entry for a flow that leaves for the world under another address.
#[inline(always)]
fn to_world<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    from: &Endpoint,
    way: &Way,
    to: &Translation,
) -> Option<&'static mut Entry<I>> {
    let slots = epoch::with_world(from.id, way.ifindex, &packet.flow.destination);
    let known = entry(ctx, packet, slots, Path::SnatOut)?;
    known.flags = FLOW_OF_SENDER | FLOW_REWRITES_SOURCE;
    known.source = I::FlowAddr::of(&to.source);
    out_by(known, way, way.length);
    Some(known)
}

/// Learns a flow, unless its translation has been removed or sent back to the stack meanwhile. The
/// program that did so also deleted this entry, maybe before it was inserted. So check again after
/// the insert.
#[inline(always)]
fn learn_world<I: KnownIp>(packet: &Parsed<I>, known: &mut Entry<I>) {
    maps::learn_flow(known, packet.generation);
    if maps::translation(&packet.flow).is_none_or(|half| half.get().past_stack == 0) {
        maps::forget_known(known);
    }
}

/// Returns whether the programs of a family can send packets of a service by what they know of the
/// flow: those for IPv6 lack stack.
#[inline(always)]
fn has_known_services<I: Ip>() -> bool {
    I::FAMILY == FAMILY_IPV4
}

/// Learns a flow between two pods of this node: requests to a service, or answers. Short connections
/// get no entry.
#[inline(always)]
pub fn learn_service_in<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Endpoint,
    half: &TranslationEntry,
) {
    if has_known_services::<I>() && is_learnable_in(packet, to) && half.mark_long() {
        add_service_in(ctx, packet, to, half.get());
    }
}

#[inline(never)]
fn add_service_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, half: &Translation) {
    let Some(from) = ends::sending_pod(&packet.headers, &packet.flow.source) else { return };
    if is_guarded(from) {
        return;
    }
    let slots = epoch::of_service(epoch::of_neighbours(from.id, to.id), half.service);
    let Some(known) = entry(ctx, packet, slots, Path::Local) else { return };
    known.flags = FLOW_OF_SENDER;
    into_endpoint(known, to);
    learn_service(packet, known, half);
}

/// Learns the answers of a service's backend on another node to a pod. `sender`: the tunnel endpoint
/// of that node, which in the tunnel is the outer source.
#[inline(always)]
pub fn learn_answer_in<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Endpoint,
    sender: &Addr,
    half: &TranslationEntry,
) {
    if has_known_services::<I>() && is_learnable_in(packet, to) && half.mark_long() {
        add_answer_in(ctx, packet, to, sender, half.get());
    }
}

#[inline(never)]
fn add_answer_in<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Endpoint,
    sender: &Addr,
    half: &Translation,
) {
    let slots = epoch::with_node(to.id, sender, &packet.flow.source);
    let slots = epoch::of_service(slots, half.service);
    let path = if maps::is_direct() { Path::DirectIn } else { Path::TunnelIn };
    let Some(known) = entry(ctx, packet, slots, path) else { return };
    known.flags = FLOW_OF_SENDER;
    if !maps::is_direct() {
        known.flags = FLOW_IN_TUNNEL;
        known.tunnel.there = *sender;
    }
    into_endpoint(known, to);
    learn_service(packet, known, half);
}

/// Learns the route of a pod's flow through the tunnel to a service's backend.
#[inline(always)]
pub fn learn_service_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    way: &Way,
    node: &Node,
    half: &TranslationEntry,
) {
    if has_known_services::<I>() && is_plain(packet) && half.mark_long() {
        add_service_out(ctx, packet, way, node, half.get());
    }
}

#[inline(never)]
fn add_service_out<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    way: &Way,
    node: &Node,
    half: &Translation,
) {
    let Some(from) = ends::sending_pod(&packet.headers, &packet.flow.source) else { return };
    if is_guarded(from) {
        return;
    }
    let slots = epoch::with_node(from.id, &way.destination, &half.destination);
    let slots = epoch::of_service(slots, half.service);
    let Some(known) = entry(ctx, packet, slots, Path::TunnelOut) else { return };
    known.flags = FLOW_OF_SENDER;
    into_tunnel(known, packet, way, node);
    learn_service(packet, known, half);
}

/// Learns a flow of a service, unless its translation has been removed meanwhile: see
/// [`learn_world`].
#[inline(always)]
fn learn_service<I: KnownIp>(packet: &Parsed<I>, known: &mut Entry<I>, half: &Translation) {
    known.flags |= FLOW_REWRITES_SOURCE | FLOW_REWRITES_DESTINATION;
    known.source = I::FlowAddr::of(&half.source);
    known.destination = I::FlowAddr::of(&half.destination);
    known.source_port = half.source_port;
    known.destination_port = half.destination_port;
    maps::learn_flow(known, packet.generation);
    if maps::translation(&packet.flow).is_none() {
        maps::forget_known(known);
    }
}

/// Learns the pod to which replies from the world go.
#[inline(always)]
pub fn learn_world_in<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Endpoint,
    half: &TranslationEntry,
) {
    if is_learnable_in(packet, to) && half.mark_long() {
        add_world_in(ctx, packet, to, half.get());
    }
}

#[inline(never)]
fn add_world_in<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, to: &Endpoint, half: &Translation) {
    let slots = epoch::with_world(to.id, ctx.ifindex(), &packet.flow.source);
    let Some(known) = entry(ctx, packet, slots, Path::SnatIn) else { return };
    known.flags = FLOW_REWRITES_DESTINATION;
    known.destination = I::FlowAddr::of(&half.destination);
    known.destination_port = half.destination_port;
    known.mtu = to.mtu;
    into_endpoint(known, to);
    learn_world(packet, known);
}

#[inline(always)]
fn out_by<A: FlowAddr>(known: &mut KnownFlow<A>, way: &Way, mtu: u32) {
    known.leaves = LEAVES_BY_UPLINK;
    known.to = way.ifindex;
    known.next_hop = way.next_hop;
    known.mtu = mtu;
}

#[inline(always)]
fn into_endpoint<A: FlowAddr>(known: &mut KnownFlow<A>, endpoint: &Endpoint) {
    known.leaves = LEAVES_INTO_POD;
    known.to = endpoint.ifindex;
    known.macs = endpoint.macs();
}

/// Returns an entry for a packet's flow, which does not yet say where its packets go.
#[inline(always)]
fn entry<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    slots: [u16; FLOW_SLOTS],
    path: Path,
) -> Option<&'static mut Entry<I>> {
    let known = maps::new_flow()?;
    let flow = &packet.flow;
    *known = KnownFlow {
        key: *I::FlowAddr::key(flow).borrow(),
        epochs: 0,
        asked: maps::jiffies(),
        slots,
        from: ctx.ifindex(),
        to: 0,
        mtu: u32::MAX,
        sender_mac: packet.headers.source_mac,
        flags: 0,
        leaves: 0,
        macs: Macs::default(),
        source: I::FlowAddr::of(&flow.source),
        destination: I::FlowAddr::of(&flow.destination),
        source_port: flow.source_port,
        destination_port: flow.destination_port,
        path: path as u16,
        reserved: [0; 2],
        next_hop: NextHop::UNKNOWN,
        tunnel: Tunnel::NONE,
        reserved2: [0; 4],
    };
    Some(known)
}

/// Forgets the learnt flow if a stack flow or a translation was added while the packet was judged.
/// The program that added it also deleted this entry, maybe before it was inserted. So check again
/// after the insert.
#[inline(never)]
fn check_again<I: Ip>(packet: &Parsed<I>) {
    let flow = &packet.flow;
    if maps::is_stack_flow(flow)
        || maps::translation(flow).is_some()
        || (flow.protocol != protocol::TCP && maps::is_stack_flow(&flow.reversed()))
    {
        maps::forget_flow::<I::FlowAddr>(flow);
    }
}
