//! Packets of services. A program of a pod, of an uplink or of the VXLAN device jumps here with the
//! answer to a pod's packet to a service, and `from_pod` also with a packet whose destination is
//! neither a pod nor a node. The programs that jump here have no stack left for it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::reason::{Drop, Hook};

use crate::{
    packet::{Ipv4, Ipv6, Place, Skb},
    stage::{fastpath::KnownIp, service},
    verdict::{Outcome, finish},
};

#[classifier]
pub fn served(ctx: TcContext) -> i32 {
    finish_at(&ctx, verdict::<Ipv4>(&ctx))
}

/// The program for IPv6.
#[classifier]
pub fn served6(ctx: TcContext) -> i32 {
    finish_at(&ctx, verdict::<Ipv6>(&ctx))
}

#[inline(always)]
fn verdict<I: KnownIp>(ctx: &TcContext) -> Outcome {
    let mut place = Place::<I>::new();
    // The program that jumped here has parsed the packet.
    match place.load(ctx)?.parse(ctx) {
        Ok(packet) => service::serve(ctx, packet),
        Err(_) => Err(Drop::Truncated),
    }
}

/// Does the same as [`finish`] for the hook that the packet comes from.
#[inline(always)]
fn finish_at(ctx: &TcContext, outcome: Outcome) -> i32 {
    let hook = match ctx.served_at() {
        hook if hook == Hook::FromPod as u32 => Hook::FromPod,
        hook if hook == Hook::FromOverlay as u32 => Hook::FromOverlay,
        hook if hook == Hook::ToPod as u32 => Hook::ToPod,
        _ => Hook::FromUplink,
    };
    finish(ctx, hook, outcome)
}
