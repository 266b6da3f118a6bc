//! TC egress of the host side of a pod's veth pair: packets that the host stack sends to the pod.
//! Packets that other programs deliver with `bpf_redirect_peer` do not come here. Packets that they
//! send through the link's queue come here with a mark.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    names::programs::Jump,
    reason::{Hook, Path},
};

use crate::{
    maps,
    packet::{Ip, Ipv4, Ipv6, Place, Skb, ethertype},
    stage::{event, local, service, stack_flow},
    verdict::{Outcome, Verdict, capture, finish, serve},
};

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::ToPod);
    let family = if ctx.frame_ethertype() == ethertype::IPV6 { Jump::SERVICES6 } else { Jump::SERVICES };
    finish(&ctx, Hook::ToPod, serve(&ctx, Hook::ToPod, verdict(&ctx), family))
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Outcome {
    if ctx.is_ready_to_leave() {
        // Clear the mark: the field crosses network namespaces.
        ctx.clear_ready_to_leave();
        return Ok(Verdict::PASS);
    }
    if ctx.frame_ethertype() == ethertype::IPV6 {
        return from_stack6(ctx);
    }
    from_stack::<Ipv4>(ctx)
}

// Not inlined: the packet would take stack beside the one of IPv4.
#[inline(never)]
fn from_stack6(ctx: &TcContext) -> Outcome {
    from_stack::<Ipv6>(ctx)
}

#[inline(always)]
fn from_stack<I: Ip>(ctx: &TcContext) -> Outcome {
    let mut place = Place::<I>::new();
    let loaded = match place.load(ctx) {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return Ok(Verdict::PASS),
    };
    let destination = loaded.headers().destination_address();
    let endpoint = match maps::endpoint(&destination) {
        Some(endpoint) if endpoint.ifindex == ctx.ifindex() => endpoint,
        _ => return Ok(Verdict::PASS),
    };
    let packet = loaded.parse(ctx)?;
    event::begin(ctx, packet);
    if service::is_answer_of_host(packet) {
        return Ok(Verdict::SERVE);
    }
    stack_flow::record(packet, &destination, &packet.headers.source_address());
    // The link has no neighbour entries, so the stack wrote the link's own address where the pod's
    // belongs.
    local::address_to_pod(ctx, endpoint)?;
    Ok(Verdict::stack(Path::FromStack))
}
