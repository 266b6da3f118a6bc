//! TC egress of the VXLAN device: packets that the host stack sends to other nodes' pods.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_ADDRESS, NODE_LOCAL, NODE_NAMED},
    addr::Addr,
    reason::{Drop, Path},
};

use crate::{
    maps,
    packet::{Place, get_tunnel_key},
    stage::{snat, source, stack_flow, tunnel_out},
    verdict::{Outcome, Verdict, finish},
};

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
    let mut place = Place::new();
    let loaded = place.load(ctx)?;
    if !loaded.headers().is_ip() {
        return Err(Drop::NoNodeForDestination);
    }
    let destination = loaded.headers().destination_address();
    let node = match maps::node(&destination) {
        Some(node) if node.flags & NODE_LOCAL == 0 => node,
        _ => return Err(Drop::NoNodeForDestination),
    };
    let packet = loaded.parse(ctx)?;
    source::refuse_forwarded_tunnel(ctx, packet)?;
    let source = packet.headers.source_address();
    if maps::endpoint(&source).is_some() {
        stack_flow::record(packet, &source, &destination);
    } else if is_unknown_elsewhere(&source) {
        snat::into_tunnel(ctx, packet)?;
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
