//! TC ingress of the VXLAN device: packets that the device has decapsulated.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{stage::tunnel_in, verdict::finish};

#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    finish(&ctx, tunnel_in::on_device(&ctx))
}
