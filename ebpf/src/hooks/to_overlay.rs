//! TC egress of the VXLAN device: packets that the host stack sends to other nodes' pods.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_ADDRESS, NODE_LOCAL, NODE_NAMED},
    addr::Addr,
    reason::{Drop, Path},
};

use crate::{
    maps,
    packet::{ETHERNET_LENGTH, Ip, Ipv4, Ipv6, Parsed, Place, Skb, ethertype, get_tunnel_key},
    stage::{snat, source, stack_flow, tunnel_out},
    verdict::{Outcome, Verdict, finish},
};

/// Offset of the destination from the start of the IPv6 header (RFC 8200 section 3).
const IPV6_DESTINATION: u32 = 24;
/// First bytes of a group of the link (RFC 4291 section 2.7).
const LINK_LOCAL_SCOPE: [u8; 2] = [0xff, 0x02];

#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    finish(&ctx, verdict(&ctx))
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Outcome {
    if get_tunnel_key(ctx).is_some() {
        // Another hook set the key, because it could not encapsulate the packet itself. The packet
        // does not belong to a stack flow.
        return Ok(Verdict::PASS);
    }
    if ctx.frame_ethertype() == ethertype::IPV6 {
        return from_stack6(ctx);
    }
    from_stack::<Ipv4>(ctx, |packet| snat::into_tunnel(ctx, packet))
}

// Not inlined: the packet would take stack beside the one of IPv4.
#[inline(never)]
fn from_stack6(ctx: &TcContext) -> Outcome {
    // The kernel reports the groups of the device's own addresses (RFC 3810).
    if ctx.load_at(ETHERNET_LENGTH + IPV6_DESTINATION) == Ok(LINK_LOCAL_SCOPE) {
        return Err(Drop::NeighbourChatter);
    }
    // The programs do not translate IPv6 yet.
    from_stack::<Ipv6>(ctx, |_| Err(Drop::FamilyNotEnabled))
}

/// Sends a packet to its node. `masquerade` replaces a source that the other nodes do not know.
#[inline(always)]
fn from_stack<I: Ip>(
    ctx: &TcContext,
    masquerade: impl FnOnce(&mut Parsed<I>) -> Result<(), Drop>,
) -> Outcome {
    let mut place = Place::<I>::new();
    let loaded = place.load(ctx)?;
    if !loaded.headers().is_ip() {
        return Err(Drop::NoNodeForDestination);
    }
    let node = match maps::node(&loaded.headers().destination_address()) {
        Some(node) if node.flags & NODE_LOCAL == 0 => node,
        _ => return Err(Drop::NoNodeForDestination),
    };
    let packet = loaded.parse(ctx)?;
    source::refuse_forwarded_tunnel(ctx, packet)?;
    let source = packet.headers.source_address();
    if maps::endpoint(&source).is_some() {
        stack_flow::record(packet, &source, &packet.headers.destination_address());
    } else if is_unknown_elsewhere(&source) {
        masquerade(packet)?;
    }
    tunnel_out::address_to_node(ctx, packet, node)?;
    Ok(Verdict::stack(Path::StackToTunnel))
}

/// Returns whether the other nodes would drop this source: a VIP of this node, or an outside host.
#[inline(always)]
fn is_unknown_elsewhere(source: &Addr) -> bool {
    match maps::node(source) {
        None => true,
        Some(node) => node.flags & (NODE_LOCAL | NODE_ADDRESS | NODE_NAMED) == NODE_LOCAL | NODE_ADDRESS,
    }
}
