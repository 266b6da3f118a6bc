//! Packets of clients outside to services, and the answers. The programs of an uplink and of the VXLAN
//! device jump here: they have no stack left for it.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    packet::{Ipv4, Ipv6},
    stage::outside,
    verdict::finish_served,
};

#[classifier]
pub fn outside(ctx: TcContext) -> i32 {
    finish_served(&ctx, outside::serve::<Ipv4>)
}

/// The program for IPv6.
#[classifier]
pub fn outside6(ctx: TcContext) -> i32 {
    finish_served(&ctx, outside::serve::<Ipv6>)
}
