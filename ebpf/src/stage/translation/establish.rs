//! Making both halves of a translation.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Flow, Translation},
    addr::Be16,
    nat,
    reason::Drop,
};

use super::{
    attempt::{Closed, SAME_POD, Try, try_port},
    entries::{added, give_back, remove, take_share},
};
use crate::{global::global, maps};

/// Makes both halves of a translation: the original flow becomes what `to` says, with a source port of its own where that one is
/// somebody else's.
///
/// Replies must find one owner only. So their half is written first, which fails where there is another, and then it is looked for
/// a socket: one that begins later finds the half when its first packet leaves. While that half is there alone nothing is
/// translated yet.
///
/// # Errors
/// [`Drop::SnatPortsExhausted`], [`Drop::TranslationsFull`], [`Drop::TranslationShareUsed`].
#[inline(always)]
pub fn establish(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    match podwire_establish(ctx.skb.skb, original, to) {
        DONE => Ok(()),
        PORTS_EXHAUSTED => Err(Drop::SnatPortsExhausted),
        SHARE_USED => Err(Drop::TranslationShareUsed),
        _ => Err(Drop::TranslationsFull),
    }
}

const DONE: i32 = 0;
const PORTS_EXHAUSTED: i32 = 1;
const SHARE_USED: i32 = 2;
const FULL: i32 = 3;

global! {
    fn podwire_establish(ctx, original: ref Flow, to: mut Translation) -> i32, or FULL {
        match establish_here(ctx, original, to) {
            Ok(()) => DONE,
            Err(Drop::SnatPortsExhausted) => PORTS_EXHAUSTED,
            Err(Drop::TranslationShareUsed) => SHARE_USED,
            Err(_) => FULL,
        }
    }
}

#[inline(always)]
fn establish_here(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    if !take_share(original, to) {
        return Err(Drop::TranslationShareUsed);
    }
    let outcome = establish_pair(ctx, original, to);
    if outcome != Ok(Made::Here) {
        give_back(original, to);
    }
    outcome.map(|_| ())
}

/// Who made a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Here,
    /// Another CPU was first with the same flow.
    Elsewhere,
}

#[inline(always)]
fn establish_pair(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<Made, Drop> {
    let random = maps::random();
    let own = to.source_port.get();
    let mut oldest = Closed { last_seen: u64::MAX, port: Be16::ZERO, reserved: [0; 3] };
    let mut attempt = 0;
    while attempt < nat::PORT_ATTEMPTS {
        // Read again for each attempt: kept, they would take their place on the stack.
        let (first, last) = maps::snat_ports();
        if attempt > 0 && !nat::can_change_ports(original.protocol) {
            break;
        }
        to.source_port = Be16::new(nat::port_for_attempt(own, attempt, random, first, last));
        attempt += 1;
        match try_port(ctx, original, to, &mut oldest) {
            Try::Done => return Ok(Made::Here),
            Try::There => return adopt(original, to),
            Try::Taken if oldest.last_seen == SAME_POD => break,
            Try::Taken => {}
            Try::Failed => return Err(Drop::TranslationsFull),
        }
    }
    if oldest.last_seen == u64::MAX {
        return Err(Drop::SnatPortsExhausted);
    }
    // A connection that is over gives way: one of the same pod, or the oldest of those that were met. Its server may still
    // remember it, and takes another pod's timestamps for old ones (RFC 7323 section 5).
    to.source_port = oldest.port;
    remove_closed(to, original.protocol);
    match try_port(ctx, original, to, &mut oldest) {
        Try::Done => Ok(Made::Here),
        Try::There => adopt(original, to),
        _ => Err(Drop::SnatPortsExhausted),
    }
}

/// Another CPU was first with the same flow: its translation is as good.
#[inline(never)]
fn adopt(original: &Flow, to: &mut Translation) -> Result<Made, Drop> {
    *to = *added(original).ok_or(Drop::TranslationsFull)?.get();
    Ok(Made::Elsewhere)
}

#[inline(never)]
fn remove_closed(to: &Translation, protocol_number: u8) {
    let reply = to.other_half(protocol_number);
    if let Some(entry) = maps::translation(&reply) {
        remove(&reply, entry.get());
    }
}
