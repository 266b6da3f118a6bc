//! TC ingress of an uplink without link header (tun, WireGuard, ppp): packets from the network.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{names::programs::Jump, reason::Hook};

use crate::{
    packet::{Skb, add_link_header, ethertype},
    verdict::{Decision, Verdict, finish, finish_or_jump},
};

#[classifier]
pub fn from_bare_uplink(ctx: TcContext) -> i32 {
    let ethertype = ctx.ethertype();
    if !matches!(ethertype, ethertype::IPV4 | ethertype::IPV6) {
        return finish(&ctx, Hook::FromBareUplink, Ok(Verdict::PASS));
    }
    finish_or_jump(
        &ctx,
        Hook::FromBareUplink,
        add_link_header(&ctx, ethertype).map(|()| Decision::NONE),
        Jump::FromUplink,
    )
}
