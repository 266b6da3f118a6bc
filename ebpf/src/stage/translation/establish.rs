//! Adding both halves of a translation.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FAMILY_IPV4, Flow, TRANSLATION_RELAY, TRANSLATION_SERVICE, Translation},
    addr::Be16,
    flow::FlowAddr,
    nat,
    reason::Drop,
};

use super::{
    attempt::{Closed, SAME_POD, Try, try_port},
    entries::{PAIR, added, give_back, take_share},
};
use crate::{
    global::global,
    maps,
    packet::{Ip, Ipv4, Ipv6},
};

/// Adds both halves of a translation: the original flow becomes the flow in `to`. If another flow
/// or a socket has the source port in `to`, the function chooses another one.
///
/// Replies must find only one owner. So the function adds their half first, which fails if another
/// flow has it. Then it looks for a socket. If a socket begins later, `to_uplink` finds the half
/// when the socket's first packet leaves. While only the replies' half exists, nothing is
/// translated.
///
/// # Errors
/// [`Drop::SnatPortsExhausted`], [`Drop::TranslationsFull`], [`Drop::TranslationShareUsed`].
#[inline(always)]
pub fn establish<I: Ip>(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    let skb = ctx.skb.skb;
    match match I::FAMILY {
        FAMILY_IPV4 => podwire_establish(skb, original, to),
        _ => podwire_establish6(skb, original, to),
    } {
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
        establish_here::<Ipv4>(ctx, original, to)
    }
}

global! {
    fn podwire_establish6(ctx, original: ref Flow, to: mut Translation) -> i32, or FULL {
        establish_here::<Ipv6>(ctx, original, to)
    }
}

#[inline(always)]
fn establish_here<I: Ip>(ctx: &TcContext, original: &Flow, to: &mut Translation) -> i32 {
    match establish_share::<I>(ctx, original, to) {
        Ok(()) => DONE,
        Err(Drop::SnatPortsExhausted) => PORTS_EXHAUSTED,
        Err(Drop::TranslationShareUsed) => SHARE_USED,
        Err(_) => FULL,
    }
}

#[inline(always)]
fn establish_share<I: Ip>(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    if !take_share(original, to) {
        return Err(Drop::TranslationShareUsed);
    }
    let outcome = establish_pair::<I>(ctx, original, to);
    if outcome.is_err() {
        give_back(original, to);
    }
    outcome
}

#[inline(always)]
fn establish_pair<I: Ip>(ctx: &TcContext, original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    let random = maps::random();
    let mut oldest = Closed { last_seen: u64::MAX, port: Be16::ZERO, reserved: [0; 3] };
    let mut attempt = 0;
    if uses_service_ports(to.kind) {
        match nat::service_port(to.source_port.get()) {
            Some(port) => to.source_port = Be16::new(port),
            None => attempt = 1,
        }
    }
    while attempt < nat::PORT_ATTEMPTS {
        if attempt > 0 {
            if !nat::can_change_ports(original.protocol, I::ICMP) {
                break;
            }
            // Read again for each attempt: kept values would take stack.
            let (first, last) =
                if uses_service_ports(to.kind) { nat::SERVICE_PORTS } else { maps::snat_ports() };
            to.source_port = Be16::new(nat::port_for_attempt(attempt, random, first, last));
        }
        attempt += 1;
        match try_port::<I>(ctx, original, to, &mut oldest) {
            Try::Done => return Ok(()),
            Try::There => return adopt(original, to),
            Try::Taken if oldest.last_seen == SAME_POD => break,
            Try::Taken => {}
            Try::Failed => return Err(Drop::TranslationsFull),
        }
    }
    if oldest.last_seen == u64::MAX {
        return Err(Drop::SnatPortsExhausted);
    }
    // A closed connection gives up its port: one of the same pod, or else the oldest of those
    // found. The server may still remember the connection, and would take another pod's timestamps
    // for old ones (RFC 7323 section 5).
    to.source_port = oldest.port;
    give_back_closed(to, original.protocol);
    remove_closed::<I::FlowAddr>(to, original.protocol);
    match try_port::<I>(ctx, original, to, &mut oldest) {
        Try::Done => Ok(()),
        Try::There => adopt(original, to),
        _ => Err(Drop::SnatPortsExhausted),
    }
}

/// Returns whether a flow's source port must leave the ephemeral range. Otherwise another flow from
/// the same address to the backend itself, a pod's or a process's, might have the same port.
#[inline(always)]
fn uses_service_ports(kind: u8) -> bool {
    matches!(kind, TRANSLATION_SERVICE | TRANSLATION_RELAY)
}

/// Uses the translation of another CPU, which was first with the same flow, and gives back the share
/// of this one. Another backend may be another holder.
#[inline(never)]
fn adopt(original: &Flow, to: &mut Translation) -> Result<(), Drop> {
    let there = added(original).ok_or(Drop::TranslationsFull)?;
    give_back(original, to);
    *to = *there.get();
    Ok(())
}

// Here and not in `remove_closed`: this is near the deepest point of the call chain.
#[inline(never)]
fn give_back_closed(to: &Translation, protocol_number: u8) {
    let key = to.other_half(protocol_number);
    if let Some(entry) = maps::translation(&key) {
        maps::give_back(&nat::holder(&key, entry.get()), PAIR);
    }
}

// Both keys have one place on the stack.
#[inline(never)]
fn remove_closed<A: FlowAddr>(to: &Translation, protocol_number: u8) {
    let mut key = to.other_half(protocol_number);
    let Some(entry) = maps::translation(&key) else {
        return;
    };
    let half = entry.get();
    maps::remove_translation::<A>(&key);
    key = half.other_half(protocol_number);
    maps::remove_translation::<A>(&key);
}
