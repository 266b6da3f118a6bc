//! Time and random numbers, which come from outside the packet.

use podwire_common::abi::KNOWN_FLOW_JIFFIES;

use crate::helpers::{bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};

/// The shortest time between two refreshes of an entry, nanoseconds. It keeps CPUs that share a
/// flow from fighting over a cache line.
pub(super) const REFRESH_NS: u64 = 1_000_000_000;

/// Returns `CLOCK_MONOTONIC` in nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Returns a random number from the kernel.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Returns whether an answer of the kernel or of the host's rules is recent enough to use. `asked`
/// is the time of the question, in jiffies.
#[inline(always)]
pub fn is_fresh(asked: u32) -> bool {
    jiffies().wrapping_sub(asked) < KNOWN_FLOW_JIFFIES
}

/// Returns the lower 32 bits of the kernel's coarse clock, in jiffies.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() as u32 }
}

/// # Safety
/// `last_seen` points into a map element.
#[inline(always)]
pub(super) unsafe fn refresh(last_seen: *mut u64) {
    let now = now();
    // SAFETY: the caller keeps this function's contract.
    unsafe {
        if now.wrapping_sub(*last_seen) > REFRESH_NS {
            *last_seen = now;
        }
    }
}
