//! TC, before every hook while somebody captures packets: writes the packet, and goes back to the
//! hook.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    names::programs::Jump,
    reason::{Drop, Hook},
};

use crate::{maps, packet::Skb, stage::event, verdict::finish};

#[classifier]
pub fn captured(ctx: TcContext) -> i32 {
    let hook = ctx.captured_at();
    event::of_packet(&ctx, hook);
    let hook = match hook {
        hook if hook == Hook::FromPod as u32 => {
            maps::jump(&ctx, Jump::FromPod);
            Hook::FromPod
        }
        hook if hook == Hook::ToPod as u32 => {
            maps::jump(&ctx, Jump::ToPod);
            Hook::ToPod
        }
        hook if hook == Hook::FromOverlay as u32 => {
            maps::jump(&ctx, Jump::FromOverlay);
            Hook::FromOverlay
        }
        hook if hook == Hook::ToOverlay as u32 => {
            maps::jump(&ctx, Jump::ToOverlay);
            Hook::ToOverlay
        }
        hook if hook == Hook::FromUplink as u32 => {
            maps::jump(&ctx, Jump::FromUplink);
            Hook::FromUplink
        }
        hook if hook == Hook::ToUplink as u32 => {
            maps::jump(&ctx, Jump::ToUplink);
            Hook::ToUplink
        }
        _ => {
            maps::jump(&ctx, Jump::ToBareUplink);
            Hook::ToBareUplink
        }
    };
    // The hook has not judged the packet, so it must not pass.
    finish(&ctx, hook, Err(Drop::ProgramMissing))
}
