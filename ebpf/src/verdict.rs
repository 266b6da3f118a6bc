//! The decision of a hook, and the one place that turns a decision into a code and a count.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::{TcContext, XdpContext},
};
use podwire_common::{
    names::programs::Jump,
    reason::{Drop, Hook, Path},
};

use crate::{
    maps,
    packet::{Ip, Parsed, Place, Skb, SocketCall},
};

/// The decision about a packet that is not dropped: a TC code, and the path to count it under.
///
/// All of its fields are always set. With an enum, the compiler would also compute with fields that
/// a variant lacks. Such a field is whatever a register holds, for example a pointer, and the
/// verifier refuses that. Together with a drop reason, a verdict fits one register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// A path's number, or [`UNCOUNTED`].
    counter: u16,
    /// TC code.
    code: i16,
}

impl Verdict {
    /// The packet passes unchanged to other programs and the host stack, and is not counted.
    pub const PASS: Self = Self::new(UNCOUNTED, TC_ACT_UNSPEC);

    /// The packet goes to the program for services ([`serve`]). At most its outer headers were removed.
    pub const SERVE: Self = Self::new(UNCOUNTED - 2, TC_ACT_UNSPEC);

    /// The packet goes to the program for clients outside ([`serve`]). At most its outer headers were
    /// removed.
    pub const OUTSIDE: Self = Self::new(UNCOUNTED - 3, TC_ACT_UNSPEC);

    /// Makes the verdict that passes the packet to the host stack and counts it under `path`.
    #[inline(always)]
    pub const fn stack(path: Path) -> Self {
        Self::new(path as u16, TC_ACT_UNSPEC)
    }

    /// Makes the verdict that returns a redirect helper's `code` and counts the packet under
    /// `path`.
    #[inline(always)]
    pub const fn redirect(path: Path, code: i32) -> Self {
        Self::new(path as u16, code)
    }

    /// Does the same as [`Self::redirect`], with the number of the path.
    #[inline(always)]
    pub const fn counted(path: u16, code: i32) -> Self {
        Self::new(path, code)
    }

    #[inline(always)]
    const fn new(counter: u16, code: i32) -> Self {
        Self { counter, code: code as i16 }
    }
}

/// The counter of a packet that is not counted.
const UNCOUNTED: u16 = u16::MAX;

/// The result of a cgroup socket program: the call goes on.
pub const ALLOW: i32 = 1;
/// The result of a cgroup socket program: the call fails.
const REFUSE: i32 = 0;
/// Errors of `linux/errno.h`.
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;

/// The outcome of a hook.
pub type Outcome = Result<Verdict, Drop>;

/// The decision of a stage that may leave the packet to later stages. For the same reason as
/// [`Verdict`], it is one number and not an `Option`. Only [`Self::verdict`] reads it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Decision(Verdict);

impl Decision {
    /// The stage decided nothing, and did nothing to the packet.
    pub const NONE: Self = Self(Verdict::new(UNCOUNTED - 1, TC_ACT_UNSPEC));

    /// Returns the verdict, if the stage decided.
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

/// The outcome of a stage that may leave the decision to later stages.
pub type Attempt = Result<Decision, Drop>;

/// Lets a packet be captured, if somebody captures packets. Call it first in the first program of a
/// hook. The packet comes back to that program.
#[inline(always)]
pub fn capture(ctx: &TcContext, hook: Hook) {
    if maps::is_captured() && !ctx.take_captured(hook) {
        ctx.set_captured(hook);
        maps::jump(ctx, Jump::Captured);
    }
}

/// Counts an outcome and returns its TC code. A dropped packet goes to the program that writes its
/// event, as does a packet that may be the first of its flow, while somebody listens. A packet that
/// passes gets "unspecified" rather than "ok", so programs that others attached after these still
/// run.
#[inline(always)]
pub fn finish(ctx: &TcContext, hook: Hook, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict { counter, code }) => {
            if counter != UNCOUNTED {
                maps::count_traffic(counter.into(), ctx.bytes());
                if ctx.has_begun() {
                    ctx.set_verdict(counter.into(), hook, code.into());
                    maps::jump(ctx, Jump::Begun);
                }
            }
            i32::from(code)
        }
        Err(reason) => {
            maps::count_drop(reason, ctx.bytes());
            ctx.set_note(reason, hook);
            maps::jump(ctx, Jump::Dropped);
            TC_ACT_SHOT
        }
    }
}

/// Continues with one of the family's programs for services, `to`, if the outcome says so. Otherwise
/// returns the outcome, for [`finish`] or [`finish_or_jump`].
#[inline(always)]
pub fn serve<D: Copy + PartialEq + From<Verdict>>(
    ctx: &TcContext,
    hook: Hook,
    outcome: Result<D, Drop>,
    [inside, outside]: [Jump; 2],
) -> Result<D, Drop> {
    let to = match outcome {
        Ok(verdict) if verdict == D::from(Verdict::SERVE) => inside,
        Ok(verdict) if verdict == D::from(Verdict::OUTSIDE) => outside,
        outcome => return outcome,
    };
    ctx.set_served(hook);
    maps::jump(ctx, to);
    Err(Drop::ProgramMissing)
}

/// Gives the packet to a stage, and does the same as [`finish`] for the hook from which [`serve`] has
/// jumped.
#[inline(always)]
pub fn finish_served<I: Ip>(
    ctx: &TcContext,
    stage: impl FnOnce(&TcContext, &mut Parsed<I>) -> Outcome,
) -> i32 {
    let mut place = Place::<I>::new();
    // The program that jumped here has parsed the packet.
    let outcome = place.load(ctx).and_then(|loaded| match loaded.parse(ctx) {
        Ok(packet) => stage(ctx, packet),
        Err(_) => Err(Drop::Truncated),
    });
    let hook = match ctx.served_at() {
        hook if hook == Hook::FromPod as u32 => Hook::FromPod,
        hook if hook == Hook::FromOverlay as u32 => Hook::FromOverlay,
        hook if hook == Hook::ToPod as u32 => Hook::ToPod,
        _ => Hook::FromUplink,
    };
    finish(ctx, hook, outcome)
}

/// Does the same as [`finish`]. Without a decision, it continues with another program.
#[inline(always)]
pub fn finish_or_jump(ctx: &TcContext, hook: Hook, attempt: Attempt, to: Jump) -> i32 {
    match attempt.map(Decision::verdict) {
        Ok(Some(verdict)) => finish(ctx, hook, Ok(verdict)),
        Ok(None) => {
            maps::jump(ctx, to);
            finish(ctx, hook, Err(Drop::ProgramMissing))
        }
        Err(reason) => finish(ctx, hook, Err(reason)),
    }
}

/// Counts a call that a process may not make, sets the error that the process gets, and returns the
/// code of the program.
///
/// A call cannot be dropped like a packet: without an endpoint on this node, the process gets the
/// error of an address that it cannot reach.
#[inline(always)]
pub fn finish_call(call: &impl SocketCall, outcome: Result<(), Drop>) -> i32 {
    let Err(reason) = outcome else { return ALLOW };
    maps::count_path(Path::CallRefused, 0);
    call.set_error(match reason {
        Drop::NoBackend | Drop::ServicePortUnknown => ECONNREFUSED,
        _ => EHOSTUNREACH,
    });
    REFUSE
}

/// Counts a drop, and returns the XDP code of an outcome. `Ok` passes the packet.
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
