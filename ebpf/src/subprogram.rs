//! Functions that the verifier checks once, by themselves and for whatever arguments (global functions, with pointers from Linux 5.12 on):
//! inlined or as static functions they would be walked through again for each way into them, a million instructions in all.
#![expect(
    unsafe_code,
    reason = "a global function is known by its symbol and takes pointers that may be null"
)]

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use podwire_common::{
    abi::{Flow, Translation},
    reason::Drop,
};

use crate::{
    packet::{self, Ipv4},
    stage::translation::{self, Closed, Try},
};

const DONE: i32 = 0;
const PORTS_EXHAUSTED: i32 = 1;
const FAILED: i32 = 2;
const TAKEN: i32 = 3;
const THERE: i32 = 4;
const SHARE_USED: i32 = 5;

/// See [`translation::establish`].
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

// SAFETY: nothing else bears the name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podwire_establish(skb: *mut __sk_buff, original: *const Flow, to: *mut Translation) -> i32 {
    // SAFETY: the verifier lets in only null and pointers to whole values that nobody else writes meanwhile.
    let (Some(original), Some(to)) = (unsafe { original.as_ref() }, unsafe { to.as_mut() }) else {
        return FAILED;
    };
    match translation::establish(&TcContext::new(skb), original, to) {
        Ok(()) => DONE,
        Err(Drop::SnatPortsExhausted) => PORTS_EXHAUSTED,
        Err(Drop::TranslationShareUsed) => SHARE_USED,
        Err(_) => FAILED,
    }
}

/// See [`translation::try_port`].
#[inline(always)]
pub fn try_port(ctx: &TcContext, original: &Flow, to: &Translation, oldest: &mut Closed) -> Try {
    match podwire_try_port(ctx.skb.skb, original, to, oldest) {
        DONE => Try::Done,
        TAKEN => Try::Taken,
        THERE => Try::There,
        _ => Try::Failed,
    }
}

// SAFETY: nothing else bears the name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podwire_try_port(
    skb: *mut __sk_buff,
    original: *const Flow,
    to: *const Translation,
    oldest: *mut Closed,
) -> i32 {
    // SAFETY: as above.
    let (Some(original), Some(to), Some(oldest)) =
        (unsafe { original.as_ref() }, unsafe { to.as_ref() }, unsafe { oldest.as_mut() })
    else {
        return FAILED;
    };
    match translation::try_port(&TcContext::new(skb), original, to, oldest) {
        Try::Done => DONE,
        Try::Taken => TAKEN,
        Try::There => THERE,
        Try::Failed => FAILED,
    }
}

/// See [`packet::translate`].
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &Ipv4, to: &Translation) -> Result<(), Drop> {
    match podwire_translate(ctx.skb.skb, packet, to) {
        DONE => Ok(()),
        _ => Err(Drop::RewriteFailed),
    }
}

// SAFETY: nothing else bears the name.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn podwire_translate(skb: *mut __sk_buff, packet: *const Ipv4, to: *const Translation) -> i32 {
    // SAFETY: as above.
    let (Some(packet), Some(to)) = (unsafe { packet.as_ref() }, unsafe { to.as_ref() }) else {
        return FAILED;
    };
    if packet::translate(&TcContext::new(skb), packet, to).is_ok() { DONE } else { FAILED }
}
