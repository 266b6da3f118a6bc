//! What leaves for the network: TC egress of an uplink. A pod's address never leaves bare outside direct routing.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{NODE_LOCAL, NODE_POD_NETWORK},
    reason::Drop,
};

use crate::{
    maps,
    packet::{Headers, Ipv4, Skb},
    stage::{snat, stack_flow, tunnel_out},
    verdict::{Outcome, Verdict, finish},
};

#[classifier]
pub fn to_uplink(ctx: TcContext) -> i32 {
    finish(&ctx, verdict(&ctx))
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Outcome {
    if ctx.is_ready_to_leave() {
        return Ok(Verdict::Pass);
    }
    let mut packet = Ipv4::at(0);
    // What bears a VLAN tag belongs to another link.
    if ctx.has_foreign_vlan_tag() || packet.load(ctx).is_err() || !packet.headers.is_ipv4() {
        return Ok(Verdict::Pass);
    }
    let source = packet.headers.source_address();
    if maps::endpoint(&source).is_none() {
        refuse_unknown_pod(&packet.headers)?;
        return match packet.parse(ctx) {
            Ok(()) => snat::host_out(ctx, &mut packet),
            Err(_) => Ok(Verdict::Pass),
        };
    }
    packet.parse(ctx)?;
    let destination = packet.headers.destination_address();
    match maps::node(&destination) {
        None => snat::out(ctx, &mut packet),
        // This node's own, but the host's routes lead it out: a dead pod's address, or one that the node had.
        Some(node) if node.flags & NODE_LOCAL != 0 => Err(Drop::NoNodeForDestination),
        Some(node) => {
            stack_flow::record(&packet, &source, &destination);
            if maps::is_direct() { Ok(Verdict::Pass) } else { tunnel_out::from_stack(ctx, &packet, node) }
        }
    }
}

/// A pod network's source that is no pod's here: its pod is gone, or a rule of the host sends another node's pod on.
#[inline(always)]
fn refuse_unknown_pod(headers: &Headers) -> Result<(), Drop> {
    match maps::node(&headers.source_address()) {
        Some(node) if node.flags & NODE_POD_NETWORK == 0 => Ok(()),
        Some(node) if node.flags & NODE_LOCAL != 0 || !maps::is_direct() => Err(Drop::PodSourceUnknown),
        _ => Ok(()),
    }
}
