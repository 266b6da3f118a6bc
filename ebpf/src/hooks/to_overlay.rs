//! TC egress of the VXLAN device: packets that the host stack sends to other nodes' pods.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_ADDRESS, NODE_LOCAL, NODE_NAMED, Node},
    names::programs::Jump,
    reason::{Drop, Hook, Path},
};

use crate::{
    packet::{ETHERNET_LENGTH, Ip, Ipv4, Ipv6, Place, Skb, ethertype, get_tunnel_key},
    stage::{ends, event, outside, snat, source, stack_flow, tunnel_out},
    verdict::{Attempt, Decision, Outcome, Verdict, capture, finish, finish_or_jump},
};

/// Offset of the destination from the start of the IPv6 header (RFC 8200 section 3).
const IPV6_DESTINATION: u32 = 24;
/// First bytes of a group of the link (RFC 4291 section 2.7).
const LINK_LOCAL_SCOPE: [u8; 2] = [0xff, 0x02];

#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::ToOverlay);
    finish_or_jump(&ctx, Hook::ToOverlay, verdict(&ctx), Jump::ToOverlay6)
}

/// The program for IPv6.
#[classifier]
pub fn to_overlay6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::ToOverlay, verdict6(&ctx))
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Attempt {
    if get_tunnel_key(ctx).is_some() {
        // Another hook set the key, because it could not encapsulate the packet itself. The packet
        // does not belong to a stack flow.
        return Ok(Verdict::PASS.into());
    }
    if ctx.frame_ethertype() == ethertype::IPV6 {
        return Ok(Decision::NONE);
    }
    from_stack::<Ipv4>(ctx).map(Decision::from)
}

#[inline(always)]
fn verdict6(ctx: &TcContext) -> Outcome {
    // The kernel reports the groups of the device's own addresses (RFC 3810).
    if ctx.load_at(ETHERNET_LENGTH + IPV6_DESTINATION) == Ok(LINK_LOCAL_SCOPE) {
        return Err(Drop::NeighbourChatter);
    }
    from_stack::<Ipv6>(ctx)
}

/// Sends a packet to its node.
#[inline(always)]
fn from_stack<I: Ip>(ctx: &TcContext) -> Outcome {
    let mut place = Place::<I>::new();
    let loaded = place.load(ctx)?;
    if !loaded.headers().is_ip() {
        return Err(Drop::NoNodeForDestination);
    }
    let node = match ends::receiving_node(loaded.headers(), &loaded.headers().destination_address()) {
        Some(node) if node.flags & NODE_LOCAL == 0 => node,
        _ => return Err(Drop::NoNodeForDestination),
    };
    let packet = loaded.parse(ctx)?;
    source::refuse_forwarded_tunnel(ctx, packet)?;
    if let Some(answered) = tunnel_out::answer_stack(ctx, packet, node)?.verdict() {
        return Ok(answered);
    }
    event::begin(ctx, packet);
    let source = packet.headers.source_address();
    if ends::sending_pod(&packet.headers, &source).is_some() {
        stack_flow::record_from_pod(packet, &source, &packet.headers.destination_address());
    } else if is_unknown_elsewhere(ends::sending_node(&packet.headers, &source)) {
        snat::into_tunnel(ctx, packet)?;
    } else {
        outside::answer_of_process(ctx, packet)?;
    }
    tunnel_out::address_to_node(ctx, packet, node)?;
    Ok(Verdict::stack(Path::StackToTunnel))
}

/// Returns whether the other nodes would drop a source: a VIP of this node, or an outside host.
/// `owner`: the node that owns the source.
#[inline(always)]
fn is_unknown_elsewhere(owner: Option<&Node>) -> bool {
    match owner {
        None => true,
        Some(node) => node.flags & (NODE_LOCAL | NODE_ADDRESS | NODE_NAMED) == NODE_LOCAL | NODE_ADDRESS,
    }
}
