//! Packets of services. A program of a pod, of an uplink or of the VXLAN device jumps here with the
//! answer to a pod's packet to a service, and `from_pod` also with a packet whose destination is
//! neither a pod nor a node. The programs that jump here have no stack left for it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::reason::Drop;

use crate::{
    packet::{Ipv4, Ipv6, Place},
    stage::{fastpath::KnownIp, service},
    verdict::{Outcome, finish_served},
};

#[classifier]
pub fn served(ctx: TcContext) -> i32 {
    finish_served(&ctx, verdict::<Ipv4>(&ctx))
}

/// The program for IPv6.
#[classifier]
pub fn served6(ctx: TcContext) -> i32 {
    finish_served(&ctx, verdict::<Ipv6>(&ctx))
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
