//! Replies from the network to translated flows.

use aya_ebpf::programs::TcContext;
use podwire_common::{abi::TRANSLATION_RESERVATION, reason::Path};

use super::super::{fastpath, local};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ip, Parsed, translate},
    verdict::{Outcome, Verdict},
};

/// Translates a packet from the network. `entry` is the translation of a flow of this node or of
/// one of its pods.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn back<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>, entry: &TranslationEntry) -> Outcome {
    let to = entry.get();
    if to.kind == TRANSLATION_RESERVATION {
        return Ok(Verdict::PASS);
    }
    if to.past_stack != 0
        && packet.headers.ttl() > 1
        && let Some(endpoint) = maps::endpoint(&to.destination)
        // If the packet does not fit the pod's link, the stack tells its sender.
        && packet.wire_length(ctx) <= endpoint.mtu
    {
        fastpath::learn_world_in(ctx, packet, endpoint, entry);
        I::translate_destination(ctx, packet, to, endpoint.macs())?;
        return Ok(Verdict::redirect(Path::SnatIn, local::into_endpoint(ctx, endpoint)));
    }
    translate(ctx, packet, to)?;
    Ok(Verdict::stack(Path::SnatIn))
}
