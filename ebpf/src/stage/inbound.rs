//! Packets from the network that are not for a pod's own address: replies to translated flows, and
//! requests to hostPorts and services.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        CLIENTS_OUTSIDE, TRANSLATION_HOST, TRANSLATION_HOST_PORT, TRANSLATION_RESERVATION, TRANSLATION_SNAT,
    },
    reason::{Drop, Path},
};

use super::{fastpath::KnownIp, flow, frontend, outside, service, snat, translation};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ip, Parsed},
    verdict::{Outcome, Verdict},
};

/// Translates a packet that is not for a pod's own address. `translation` is the entry of the
/// packet's flow. The caller looks it up only for a whole packet.
///
/// # Errors
/// The reason to drop a packet of a translated flow.
#[inline(never)]
pub fn from_network<I: KnownIp>(
    ctx: &TcContext,
    packet: &mut Parsed<I>,
    translation: Option<TranslationEntry>,
) -> Outcome {
    if !packet.is_error && translation::check(packet).is_err() {
        return Ok(Verdict::PASS);
    }
    if flow::complete(packet).is_err() {
        flow::note_early(packet);
        return Ok(Verdict::PASS);
    }
    match if packet.is_whole() { translation } else { translation::of(packet) } {
        Some(entry) => follow(ctx, packet, &entry),
        None => match frontend::request(ctx, packet) {
            Ok(Verdict::PASS) if service::begins_flow(packet, CLIENTS_OUTSIDE) => Ok(Verdict::OUTSIDE),
            outcome => outcome,
        },
    }
}

/// Translates a packet by the entry of its flow.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::FragmentBeforeFirst`], [`Drop::RewriteFailed`].
#[inline(never)]
pub fn follow<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, entry: &TranslationEntry) -> Outcome {
    let half = entry.get();
    if outside::is_of(half) {
        return outside::claim(packet);
    }
    let is_ours = match half.kind {
        TRANSLATION_SNAT | TRANSLATION_HOST | TRANSLATION_RESERVATION => half.reply != 0,
        TRANSLATION_HOST_PORT => half.reply == 0,
        _ => false,
    };
    if !is_ours {
        return Ok(Verdict::PASS);
    }
    if packet.is_overtaken && half.kind != TRANSLATION_RESERVATION {
        return Err(Drop::FragmentBeforeFirst);
    }
    translation::touch(entry, packet);
    if half.kind == TRANSLATION_HOST_PORT {
        frontend::deliver(ctx, packet, half, Path::HostPortIn)
    } else {
        snat::back(ctx, packet, entry)
    }
}

/// Records that an outside client reaches a pod by the pod's own address.
#[inline(never)]
pub fn record<I: Ip>(packet: &Parsed<I>) {
    if !packet.is_error {
        maps::record_inbound_flow(&packet.flow.reversed());
    }
}
