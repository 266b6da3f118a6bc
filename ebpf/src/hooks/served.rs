//! Packets of services. A program of a pod, of an uplink or of the VXLAN device jumps here with the
//! answer to a pod's packet to a service, and `from_pod` also with a packet whose destination is
//! neither a pod nor a node. The programs that jump here have no stack left for it.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{
    packet::{Ipv4, Ipv6},
    stage::service,
    verdict::finish_served,
};

#[classifier]
pub fn served(ctx: TcContext) -> i32 {
    finish_served(&ctx, service::serve::<Ipv4>)
}

/// The program for IPv6.
#[classifier]
pub fn served6(ctx: TcContext) -> i32 {
    finish_served(&ctx, service::serve::<Ipv6>)
}
