//! Direct routing: packets to and from other nodes, without a tunnel.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Endpoint, NETWORK_REFUSED, NETWORK_THROUGH_STACK, NODE_IPSEC_PODS, Node, Translation},
    addr::Addr,
    flow::protocol,
    reason::{Drop, Path},
};

use super::{fastpath, fastpath::KnownIp, flow, local, service, stack_flow, too_big};
use crate::{
    maps,
    packet::{Fragment, Ip, Lookup, Parsed, Skb, Way, decrement_ttl, forward},
    verdict::{Outcome, Verdict},
};

/// Sends a pod's packet past the host stack, by the host's own route.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn from_pod<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: &Endpoint,
    node: &Node,
) -> Outcome {
    if packet.headers.ttl() <= 1 {
        return Ok(Verdict::stack(Path::ToStack));
    }
    let mut way = Way::new(
        node.uplink,
        packet.headers.source_address(),
        packet.headers.destination_address(),
        packet.wire_length(ctx),
    );
    match way.look_up::<I>(ctx) {
        Lookup::Found => {}
        Lookup::TooBig if too_big::can_answer(packet, way.length) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // The stack fragments the packet if it may, and answers if there is no route.
        Lookup::TooBig | Lookup::Unknown => return Ok(Verdict::stack(Path::ToStack)),
    }
    fastpath::learn_direct_out(ctx, packet, endpoint, node, &way);
    decrement_ttl(ctx, &packet.headers, 0)?;
    Ok(Verdict::redirect(Path::DirectOut, way.leave(ctx)))
}

/// Delivers a packet to a pod of this node. With a `sender`, the node that owns the source, the
/// flow is learnt. Without one, a router sent the packet.
///
/// # Errors
/// [`Drop::FragmentWithoutFirst`], [`Drop::RewriteFailed`].
#[inline(always)]
pub fn to_pod<I: KnownIp>(
    ctx: &TcContext,
    packet: &mut Parsed<I>,
    endpoint: &Endpoint,
    sender: Option<&Node>,
) -> Outcome {
    flow::complete(packet)?;
    if packet.headers.ttl() <= 1 {
        return Ok(Verdict::PASS);
    }
    if let Some(half) = service::answer(packet) {
        if let Some(node) = sender {
            fastpath::learn_answer_in(ctx, packet, endpoint, &node.tunnel_endpoint, &half);
        }
        return Ok(Verdict::SERVE);
    }
    if stack_flow::needs_stack(endpoint, packet) {
        return Ok(Verdict::PASS);
    }
    if let Some(node) = sender {
        fastpath::learn_direct_in(ctx, packet, endpoint, node);
    }
    local::deliver(ctx, &mut packet.headers, endpoint, Path::DirectIn)
}

/// Translates a packet and sends it out by the link of its translation: a hostPort's reply, a packet
/// to a service, or the answer to one. The caller has checked that the TTL is above 1. `endpoint`:
/// the pod that has sent it; `None`: a client outside or another node has.
///
/// # Errors
/// [`Drop::IpsecPolicy`], [`Drop::NoRouteBack`], [`Drop::RewriteFailed`], [`Drop::VxlanFromPod`].
#[inline(never)]
pub fn reply<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: Option<&Endpoint>,
    to: &Translation,
    path: Path,
) -> Outcome {
    if is_tunnel(packet, to) {
        return Err(Drop::VxlanFromPod);
    }
    refuse_past_policies(&to.destination)?;
    let mut way = Way::new(to.ifindex, to.source, to.destination, packet.wire_length(ctx));
    let mut found = way.look_up::<I>(ctx);
    if found == Lookup::Unknown {
        // No route leads back by that link: use the link that the routes name.
        way.ifindex = ctx.ifindex();
        found = way.look_up_any::<I>(ctx);
    }
    match found {
        Lookup::Found => {}
        // Answer before the translation: the sender knows only its own packet.
        Lookup::TooBig if too_big::can_answer(packet, way.length) => {
            return too_big::answer_sender(ctx, packet, endpoint, way.length);
        }
        // Past the stack, nothing fragments the packet. If it is larger than the link, the kernel
        // drops it silently.
        Lookup::TooBig if exceeds_link(ctx, packet, to.ifindex) => {
            return too_big::answer_sender(ctx, packet, endpoint, way.length);
        }
        // The router in front of the small link fragments the packet if it may.
        Lookup::TooBig => way.ifindex = to.ifindex,
        Lookup::Unknown => return Err(Drop::NoRouteBack),
    }
    forward(ctx, packet, to)?;
    Ok(Verdict::redirect(path, way.leave(ctx)))
}

/// Returns whether a packet would leave as one of the tunnel. It would have this node's address, which
/// the other nodes trust.
// Not inlined: its values would take stack in the caller.
#[inline(never)]
fn is_tunnel<I: Ip>(packet: &Parsed<I>, to: &Translation) -> bool {
    !maps::is_direct() && packet.flow.protocol == protocol::UDP && to.destination_port == maps::vxlan_port()
}

/// Refuses a reply that an IPsec policy may match. Only the stack would ask the policy. But the
/// translated reply has this node's own address as its source, and the stack accepts no such packet
/// from a pod's link.
#[inline(always)]
fn refuse_past_policies(client: &Addr) -> Result<(), Drop> {
    let node = maps::node(client).map_or(0, |node| node.flags & NODE_IPSEC_PODS);
    if node != 0 || maps::network(client) & (NETWORK_THROUGH_STACK | NETWORK_REFUSED) != 0 {
        return Err(Drop::IpsecPolicy);
    }
    Ok(())
}

/// Returns whether a packet is too large for an uplink itself, not only for a link further on. Only
/// a packet that has ports and can be quoted counts.
#[inline(always)]
pub fn exceeds_link<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, ifindex: u32) -> bool {
    packet.is_quotable()
        && !matches!(packet.fragment_part(), Fragment::Later)
        && maps::link(ifindex).is_some_and(|link| packet.wire_length(ctx) > link.mtu)
}
