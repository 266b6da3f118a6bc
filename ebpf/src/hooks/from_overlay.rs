//! TC ingress of the VXLAN device: packets that the device has decapsulated.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{names::programs::Jump, reason::Hook};

use crate::{
    packet::{Skb, ethertype},
    stage::tunnel_in,
    verdict::{Decision, capture, finish, finish_or_jump, serve},
};

#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::FromOverlay);
    if ctx.ethertype() == ethertype::IPV6 {
        return finish_or_jump(&ctx, Hook::FromOverlay, Ok(Decision::NONE), Jump::FromOverlay6);
    }
    finish(
        &ctx,
        Hook::FromOverlay,
        serve(&ctx, Hook::FromOverlay, tunnel_in::on_device(&ctx), Jump::SERVICES),
    )
}

/// The program for IPv6.
#[classifier]
pub fn from_overlay6(ctx: TcContext) -> i32 {
    finish(
        &ctx,
        Hook::FromOverlay,
        serve(&ctx, Hook::FromOverlay, tunnel_in::on_device6(&ctx), Jump::SERVICES6),
    )
}
