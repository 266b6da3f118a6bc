//! What a hook decides, and the one place where a decision becomes a code and a count.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use podwire_common::{
    names::programs::Jump,
    reason::{Drop, Path},
};

use crate::{maps, packet::Skb};

/// What becomes of a packet that is not dropped: a TC code, and the path that it is counted under. One number, all of which is always
/// set: with an enum's fields that a variant lacks, the compiler computes with whatever a register held, and the verifier refuses that.
/// With a reason to drop beside it, it fits one register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// A path's number, or [`UNCOUNTED`].
    counter: u16,
    /// TC code.
    code: i16,
}

impl Verdict {
    /// None of our business: other programs and the host stack see it as it came.
    pub const PASS: Self = Self::new(UNCOUNTED, TC_ACT_UNSPEC);

    /// To the host stack, counted.
    #[inline(always)]
    pub const fn stack(path: Path) -> Self {
        Self::new(path as u16, TC_ACT_UNSPEC)
    }

    /// Where a redirect helper said; its code.
    #[inline(always)]
    pub const fn redirect(path: Path, code: i32) -> Self {
        Self::new(path as u16, code)
    }

    /// As [`Self::redirect`], by the path's number.
    #[inline(always)]
    pub const fn counted(path: u16, code: i32) -> Self {
        Self::new(path, code)
    }

    #[inline(always)]
    const fn new(counter: u16, code: i32) -> Self {
        Self { counter, code: code as i16 }
    }
}

/// In place of a path's number.
const UNCOUNTED: u16 = u16::MAX;

/// What a program of sockets answers: the call goes on. None of ours refuses one.
pub const ALLOW: i32 = 1;

/// The outcome of a hook.
pub type Outcome = Result<Verdict, Drop>;

/// What a stage decided that may leave the decision to those behind it. One number as a verdict is, and for the same reason no
/// `Option`: but only [`Self::verdict`] gets at it.
#[derive(Clone, Copy)]
pub struct Decision(Verdict);

impl Decision {
    /// The stage decided nothing, and did nothing to the packet.
    pub const NONE: Self = Self(Verdict::new(UNCOUNTED - 1, TC_ACT_UNSPEC));

    /// What it decided, if it did.
    #[inline(always)]
    pub fn verdict(self) -> Option<Verdict> {
        (self.0 != Self::NONE.0).then_some(self.0)
    }
}

impl From<Verdict> for Decision {
    #[inline(always)]
    fn from(verdict: Verdict) -> Self {
        Self(verdict)
    }
}

/// The outcome of a stage that may leave the decision to those behind it.
pub type Attempt = Result<Decision, Drop>;

/// The TC code of an outcome. "Unspecified" rather than "ok": programs that others attached after ours still run.
#[inline(always)]
pub fn finish(ctx: &TcContext, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict { counter, code }) => {
            if counter != UNCOUNTED {
                maps::count_traffic(counter.into(), ctx.bytes());
            }
            i32::from(code)
        }
        Err(reason) => {
            maps::count_drop(reason, ctx.bytes());
            TC_ACT_SHOT
        }
    }
}

/// As [`finish`]; what is not decided, another program decides.
#[inline(always)]
pub fn finish_or_jump(ctx: &TcContext, attempt: Attempt, to: Jump) -> i32 {
    match attempt.map(Decision::verdict) {
        Ok(Some(verdict)) => finish(ctx, Ok(verdict)),
        Ok(None) => {
            maps::jump(ctx, to);
            finish(ctx, Err(Drop::ProgramMissing))
        }
        Err(reason) => finish(ctx, Err(reason)),
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
