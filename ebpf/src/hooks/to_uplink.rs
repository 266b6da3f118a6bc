//! TC egress of an uplink: packets that leave for the network. A packet leaves with a pod's address
//! only if that is intended: by direct routing, to a network that is not masqueraded, or in a flow
//! that an outside client began.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_LOCAL, NODE_OVERLAY, NODE_POD_NETWORK, Node},
    names::programs::Jump,
    reason::{Drop, Hook},
};

use crate::{
    maps,
    packet::{Headers, Ip, Ipv4, Ipv6, Parsed, Place, Skb, ethertype},
    stage::{ends, event, snat, source, stack_flow, tunnel_out},
    verdict::{Attempt, Decision, Outcome, Verdict, capture, finish, finish_or_jump},
};

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::ToUplink);
    finish_or_jump(&ctx, Hook::ToUplink, verdict::<false>(&ctx), Jump::ToUplink6)
}

/// Does the same for an uplink without link header (tun, WireGuard, ppp), where a packet starts
/// with its IP header.
#[classifier]
pub fn to_bare_uplink(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::ToBareUplink);
    finish_or_jump(&ctx, Hook::ToBareUplink, verdict::<true>(&ctx), Jump::ToBareUplink6)
}

/// The program for IPv6.
#[classifier]
pub fn to_uplink6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::ToUplink, judge::<Ipv6, false>(&ctx))
}

/// The program for IPv6, for an uplink without link header.
#[classifier]
pub fn to_bare_uplink6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::ToBareUplink, judge::<Ipv6, true>(&ctx))
}

#[inline(always)]
fn verdict<const BARE: bool>(ctx: &TcContext) -> Attempt {
    // A frame with a VLAN tag belongs to another link.
    if ctx.is_ready_to_leave() || ctx.has_foreign_vlan_tag() {
        return Ok(Verdict::PASS.into());
    }
    let ethertype = if BARE { ctx.ethertype() } else { ctx.frame_ethertype() };
    if ethertype == ethertype::IPV6 {
        return Ok(Decision::NONE);
    }
    judge::<Ipv4, BARE>(ctx).map(Decision::from)
}

#[inline(always)]
fn judge<I: Ip, const BARE: bool>(ctx: &TcContext) -> Outcome {
    let mut place = Place::<I>::new();
    let loaded = match if BARE { place.load_bare(ctx) } else { place.load(ctx) } {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return Ok(Verdict::PASS),
    };
    let source = loaded.headers().source_address();
    if ends::sending_pod(loaded.headers(), &source).is_none() {
        let sender = sender_is_overlay_address(loaded.headers());
        let Ok(packet) = loaded.parse(ctx) else {
            return sender.map(|_| Verdict::PASS);
        };
        if sender.is_err() && snat::is_answer_from_tunnel(packet) {
            return Ok(Verdict::PASS);
        }
        let is_overlay_address = sender?;
        event::begin(ctx, packet);
        source::refuse_forwarded_tunnel(ctx, packet)?;
        // This node answers from its overlay address if the request went to that address. The other
        // end accepts that address only from the tunnel.
        if is_overlay_address
            && !maps::is_direct()
            && let Some(node) = ends::receiving_node(&packet.headers, &packet.headers.destination_address())
            && node.flags & NODE_LOCAL == 0
        {
            return into_tunnel::<I, BARE>(ctx, packet, node);
        }
        return snat::host_out(ctx, packet);
    }
    let packet = loaded.parse(ctx)?;
    event::begin(ctx, packet);
    let destination = packet.headers.destination_address();
    match ends::receiving_node(&packet.headers, &destination) {
        None => snat::out(ctx, packet),
        // The address is this node's own, but the host's routes lead out. It belonged to a pod that
        // is gone, or the node had it before.
        Some(node) if node.flags & NODE_LOCAL != 0 => Err(Drop::NoNodeForDestination),
        Some(node) => {
            source::refuse_tunnel_from_pod(packet, node)?;
            stack_flow::record_from_pod(packet, &source, &destination);
            if maps::is_direct() { Ok(Verdict::PASS) } else { into_tunnel::<I, BARE>(ctx, packet, node) }
        }
    }
}

#[inline(always)]
fn into_tunnel<I: Ip, const BARE: bool>(ctx: &TcContext, packet: &mut Parsed<I>, node: &Node) -> Outcome {
    if BARE {
        packet.add_link_header(ctx)?;
    }
    tunnel_out::from_stack(ctx, packet, node)
}

/// Returns whether the sender is this node's overlay address: its address among its own pods. The
/// caller has checked that the sender is no pod of this node.
///
/// # Errors
/// [`Drop::PodSourceUnknown`] for a pod address without a pod here: the pod is gone, or the host
/// forwards another node's pod.
#[inline(always)]
fn sender_is_overlay_address<I: Ip>(headers: &Headers<I>) -> Result<bool, Drop> {
    match ends::sending_node(headers, &headers.source_address()) {
        Some(node) if node.flags & NODE_POD_NETWORK == 0 => Ok(node.flags & NODE_OVERLAY != 0),
        Some(node) if node.flags & NODE_LOCAL != 0 || !maps::is_direct() => Err(Drop::PodSourceUnknown),
        _ => Ok(false),
    }
}
