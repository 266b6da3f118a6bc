//! What a hook decides, and the one place where a decision becomes a code and a count.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use podwire_common::reason::{Drop, Path};

use crate::{maps, packet::Skb};

/// What becomes of a packet that is not dropped.
pub enum Verdict {
    /// None of our business: other programs and the host stack see it as it came.
    Pass,
    /// To the host stack, counted.
    Stack(Path),
    /// Where a redirect helper said; its code.
    Redirect(Path, i32),
}

/// What a program of sockets answers: the call goes on. None of ours refuses one.
pub const ALLOW: i32 = 1;

/// The outcome of a hook.
pub type Outcome = Result<Verdict, Drop>;

/// The TC code of an outcome. "Unspecified" rather than "ok": programs that others attached after ours still run.
#[inline(always)]
pub fn finish(ctx: &TcContext, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict::Pass) => TC_ACT_UNSPEC,
        Ok(Verdict::Stack(path)) => {
            maps::count_path(path, ctx.bytes());
            TC_ACT_UNSPEC
        }
        Ok(Verdict::Redirect(path, code)) => {
            maps::count_path(path, ctx.bytes());
            code
        }
        Err(reason) => {
            maps::count_drop(reason, ctx.bytes());
            TC_ACT_SHOT
        }
    }
}

/// The XDP code of an outcome: `Ok` passes.
#[inline(always)]
pub fn finish_xdp(ctx: &XdpContext, outcome: Result<(), Drop>) -> u32 {
    match outcome {
        Ok(()) => xdp_action::XDP_PASS,
        Err(reason) => {
            maps::count_drop(reason, (ctx.data_end() - ctx.data()) as u32);
            xdp_action::XDP_DROP
        }
    }
}
