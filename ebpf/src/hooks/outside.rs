//! Packets of clients outside to services, and the answers. The programs of an uplink and of the VXLAN
//! device jump here: they have no stack left for it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::reason::Drop;

use crate::{
    packet::{Ipv4, Ipv6, Place},
    stage::{fastpath::KnownIp, outside},
    verdict::{Outcome, finish_served},
};

#[classifier]
pub fn outside(ctx: TcContext) -> i32 {
    finish_served(&ctx, verdict::<Ipv4>(&ctx))
}

/// The program for IPv6.
#[classifier]
pub fn outside6(ctx: TcContext) -> i32 {
    finish_served(&ctx, verdict::<Ipv6>(&ctx))
}

#[inline(always)]
fn verdict<I: KnownIp>(ctx: &TcContext) -> Outcome {
    let mut place = Place::<I>::new();
    // The program that jumped here has parsed the packet.
    match place.load(ctx)?.parse(ctx) {
        Ok(packet) => outside::serve(ctx, packet),
        Err(_) => Err(Drop::Truncated),
    }
}
