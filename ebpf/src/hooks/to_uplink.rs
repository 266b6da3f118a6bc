//! What leaves for the network: TC egress of an uplink. A pod's address never leaves bare outside direct routing.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_LOCAL, NODE_OVERLAY, NODE_POD_NETWORK, Node},
    reason::Drop,
};

use crate::{
    maps,
    packet::{Headers, Parsed, Place, Skb},
    stage::{snat, source, stack_flow, tunnel_out},
    verdict::{Outcome, Verdict, finish},
};

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    finish(&ctx, verdict::<false>(&ctx))
}

/// The same of a link without link header (tun, WireGuard, ppp): a packet starts with its IP header.
#[classifier]
pub fn to_bare_uplink(ctx: TcContext) -> i32 {
    finish(&ctx, verdict::<true>(&ctx))
}

#[inline(always)]
fn verdict<const BARE: bool>(ctx: &TcContext) -> Outcome {
    if ctx.is_ready_to_leave() {
        return Ok(Verdict::PASS);
    }
    let mut place = Place::new();
    // What bears a VLAN tag belongs to another link.
    if ctx.has_foreign_vlan_tag() {
        return Ok(Verdict::PASS);
    }
    let loaded = match if BARE { place.load_bare(ctx) } else { place.load(ctx) } {
        Ok(loaded) if loaded.headers().is_ipv4() => loaded,
        _ => return Ok(Verdict::PASS),
    };
    let source = loaded.headers().source_address();
    if maps::endpoint(&source).is_none() {
        let sender = sender_is_overlay_address(loaded.headers());
        let Ok(packet) = loaded.parse(ctx) else {
            return sender.map(|_| Verdict::PASS);
        };
        if sender.is_err() && snat::is_answer_from_tunnel(packet) {
            return Ok(Verdict::PASS);
        }
        let is_overlay_address = sender?;
        source::refuse_forwarded_tunnel(ctx, packet)?;
        // Asked by its address among the pods, this node answers with it: the other end knows it by the tunnel only.
        if is_overlay_address
            && !maps::is_direct()
            && let Some(node) = maps::node(&packet.headers.destination_address())
            && node.flags & NODE_LOCAL == 0
        {
            return into_tunnel::<BARE>(ctx, packet, node);
        }
        return snat::host_out(ctx, packet);
    }
    let packet = loaded.parse(ctx)?;
    let destination = packet.headers.destination_address();
    match maps::node(&destination) {
        None => snat::out(ctx, packet),
        // This node's own, but the host's routes lead it out: a dead pod's address, or one that the node had.
        Some(node) if node.flags & NODE_LOCAL != 0 => Err(Drop::NoNodeForDestination),
        Some(node) => {
            source::refuse_tunnel_from_pod(packet, node)?;
            stack_flow::record(packet, &source, &destination);
            if maps::is_direct() { Ok(Verdict::PASS) } else { into_tunnel::<BARE>(ctx, packet, node) }
        }
    }
}

#[inline(always)]
fn into_tunnel<const BARE: bool>(ctx: &TcContext, packet: &mut Parsed, node: &Node) -> Outcome {
    if BARE {
        packet.add_link_header(ctx)?;
    }
    tunnel_out::from_stack(ctx, packet, node)
}

/// Whether the sender, no pod of this node, is the node's own address among its pods.
///
/// # Errors
/// [`Drop::PodSourceUnknown`] for a pod address without a pod here: the pod is gone, or the host forwards another node's pod.
#[inline(always)]
fn sender_is_overlay_address(headers: &Headers) -> Result<bool, Drop> {
    match maps::node(&headers.source_address()) {
        Some(node) if node.flags & NODE_POD_NETWORK == 0 => Ok(node.flags & NODE_OVERLAY != 0),
        Some(node) if node.flags & NODE_LOCAL != 0 || !maps::is_direct() => Err(Drop::PodSourceUnknown),
        _ => Ok(false),
    }
}
