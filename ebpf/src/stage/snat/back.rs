//! Replies from the network to translated flows.

use aya_ebpf::programs::TcContext;
use podwire_common::{abi::TRANSLATION_RESERVATION, flow::FlowAddr as _, reason::Path};

use super::super::{fastpath, fastpath::KnownIp, local};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Parsed, forward, translate},
    verdict::{Outcome, Verdict},
};

/// Translates a packet from the network. `entry` is the translation of a flow of this node or of
/// one of its pods.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn back<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, entry: &TranslationEntry) -> Outcome {
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
        if packet.is_whole() {
            packet.headers.set_macs(endpoint.macs());
            I::readdress_destination(ctx, packet, I::FlowAddr::of(&to.destination), to.destination_port)?;
            return Ok(Verdict::redirect(Path::SnatIn, local::into_endpoint(ctx, endpoint)));
        }
        forward(ctx, packet, to)?;
        return local::hand_over(ctx, endpoint, Path::SnatIn);
    }
    translate(ctx, packet, to)?;
    Ok(Verdict::stack(Path::SnatIn))
}
