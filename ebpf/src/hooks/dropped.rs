//! TC, behind every hook: writes the event of a packet that a program of the hook drops, and answers
//! the packet if its sender is to know.

use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};

use crate::{
    packet::Skb,
    stage::{event, refusal},
};

#[classifier]
pub fn dropped(ctx: TcContext) -> i32 {
    let (reason, hook) = ctx.note();
    event::of_drop(&ctx, reason, hook);
    if refusal::is_answered(reason)
        && let Some(code) = refusal::answer(&ctx, hook)
    {
        return code;
    }
    TC_ACT_SHOT
}
