//! TC, behind every hook: writes the event of a packet that a program of the hook drops.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};

use crate::{packet::Skb, stage::event};

#[classifier]
pub fn dropped(ctx: TcContext) -> i32 {
    let (reason, hook) = ctx.note();
    event::of_drop(&ctx, reason, hook);
    TC_ACT_SHOT
}
