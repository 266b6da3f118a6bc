//! TC, behind every hook: writes the event of a packet that may be the first of its flow, while
//! somebody listens. The packet then goes where the program of the hook sends it.

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::{packet::Skb, stage::event};

#[classifier]
pub fn begun(ctx: TcContext) -> i32 {
    event::of_verdict(&ctx);
    ctx.noted_code()
}
