//! To and from other nodes as the packets are, without a tunnel.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Endpoint, NETWORK_REFUSED, NETWORK_THROUGH_STACK, NODE_IPSEC_PODS, Node, Translation},
    addr::Addr,
    reason::{Drop, Path},
};

use super::{fastpath, flow, local, stack_flow, too_big};
use crate::{
    maps,
    packet::{Fragment, Lookup, Parsed, Skb, Way, decrement_ttl, translate},
    verdict::{Outcome, Verdict},
};

/// A pod's packet, past the host stack, by the host's own route.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &Parsed, endpoint: &Endpoint, node: &Node) -> Outcome {
    if packet.headers.ttl <= 1 {
        return Ok(Verdict::stack(Path::ToStack));
    }
    let mut way = Way::new(
        node.uplink,
        packet.headers.source_address(),
        packet.headers.destination_address(),
        packet.wire_length(ctx),
    );
    match way.look_up(ctx) {
        Lookup::Found => {}
        Lookup::TooBig if too_big::can_answer(packet) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // The stack cuts what may be cut, and answers where there is no route.
        Lookup::TooBig | Lookup::Unknown => return Ok(Verdict::stack(Path::ToStack)),
    }
    fastpath::learn_direct_out(ctx, packet, endpoint, node, &way);
    decrement_ttl(ctx, &packet.headers, 0)?;
    Ok(Verdict::redirect(Path::DirectOut, way.leave(ctx)))
}

/// A packet for a pod of this node: of another node's pod or of the node itself, which is learnt, or a router's.
///
/// # Errors
/// [`Drop::FragmentWithoutFirst`], [`Drop::RewriteFailed`].
#[inline(always)]
pub fn to_pod(ctx: &TcContext, packet: &mut Parsed, endpoint: &Endpoint, sender: Option<&Node>) -> Outcome {
    flow::complete(packet)?;
    if packet.headers.ttl <= 1 || stack_flow::needs_stack(endpoint, packet) {
        return Ok(Verdict::PASS);
    }
    if let Some(node) = sender {
        fastpath::learn_direct_in(ctx, packet, endpoint, node);
    }
    local::deliver(ctx, &mut packet.headers, endpoint, Path::DirectIn)
}

/// A hostPort's reply, out by the link that its request came by. Its time to live has been seen to be above 1.
///
/// # Errors
/// [`Drop::IpsecPolicy`], [`Drop::NoRouteBack`], [`Drop::RewriteFailed`].
#[inline(never)]
pub fn reply(ctx: &TcContext, packet: &Parsed, endpoint: &Endpoint, to: &Translation) -> Outcome {
    refuse_past_policies(&to.destination)?;
    let mut way = Way::new(to.ifindex, to.source, to.destination, packet.wire_length(ctx));
    let mut found = way.look_up(ctx);
    if found == Lookup::Unknown {
        // No route leads back by that link.
        way.ifindex = ctx.ifindex();
        found = way.look_up_any(ctx);
    }
    match found {
        Lookup::Found => {}
        // Before it is translated: the pod knows its own packet only.
        Lookup::TooBig if too_big::can_answer(packet) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // Nobody would cut it here, and what is larger than the link is lost without a word.
        Lookup::TooBig if exceeds_link(ctx, packet, to.ifindex) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // What may be cut is cut by the router whose link is too small.
        Lookup::TooBig => way.ifindex = to.ifindex,
        Lookup::Unknown => return Err(Drop::NoRouteBack),
    }
    decrement_ttl(ctx, &packet.headers, 0)?;
    translate(ctx, packet, to)?;
    Ok(Verdict::redirect(Path::HostPortOut, way.leave(ctx)))
}

/// Refuses a reply that an IPsec policy may match: the stack would ask the policy, but the stack takes no packet from this node's own
/// address out of a pod's link.
#[inline(always)]
fn refuse_past_policies(client: &Addr) -> Result<(), Drop> {
    let node = maps::node(client).map_or(0, |node| node.flags & NODE_IPSEC_PODS);
    if node != 0 || maps::network(client) & (NETWORK_THROUGH_STACK | NETWORK_REFUSED) != 0 {
        return Err(Drop::IpsecPolicy);
    }
    Ok(())
}

/// Whether a packet without IP options that bears ports is too large for an uplink itself, and not for a link further on.
#[inline(always)]
pub fn exceeds_link(ctx: &TcContext, packet: &Parsed, ifindex: u32) -> bool {
    packet.headers.version_length == 0x45
        && !matches!(packet.headers.fragment_part(), Fragment::Later)
        && maps::link(ifindex).is_some_and(|link| packet.wire_length(ctx) > link.mtu)
}
