//! The numbers that make known flows stale: `GENERATION`, `EPOCHS`.

use core::ptr::{read_volatile, write_volatile};
use core::sync::atomic::{Ordering, compiler_fence};

use podwire_common::epoch::{EPOCH_SLOTS, FLOW_SLOTS, GENERATION_AGENT, GENERATION_PROGRAMS};

use super::clock::random;
use super::{EPOCHS, GENERATION};

/// Returns the sum of the numbers in some slots. It never returns `None`, because the element
/// always exists.
#[inline(always)]
pub(super) fn sum_of_epochs(slots: &[u16; FLOW_SLOTS]) -> Option<u32> {
    let epochs = EPOCHS.get_ptr_mut(0)?;
    let [a, b, c, d] = *slots;
    // SAFETY: `at` stays within the element, and its words are aligned.
    let epoch = |slot| unsafe { read_volatile(at(epochs, slot)) };
    Some(epoch(a).wrapping_add(epoch(b)).wrapping_add(epoch(c)).wrapping_add(epoch(d)))
}

/// Returns a pointer to the number of a slot.
#[inline(always)]
pub(super) fn at(epochs: *mut [u32; EPOCH_SLOTS], slot: u16) -> *mut u32 {
    const { assert!(EPOCH_SLOTS.is_power_of_two()) };
    // The mask is for the verifier: a slot that comes from a map may be any number.
    epochs.cast::<u32>().wrapping_add(usize::from(slot) & (EPOCH_SLOTS - 1))
}

/// Returns the generation. This number changes when a table changes that verdicts on flows depend
/// on. Read it before judging a packet from which a flow may be learnt.
#[inline(always)]
pub fn generation() -> u32 {
    GENERATION.get_ptr_mut(0).map_or(0, |numbers| {
        let numbers = numbers.cast::<u32>();
        // SAFETY: aligned words of one element.
        let of = |writer| unsafe { read_volatile(numbers.add(writer)) };
        of(GENERATION_AGENT).wrapping_add(of(GENERATION_PROGRAMS))
    })
}

/// Makes all known flows stale that hold this slot (see [`epoch`]). The caller has written the
/// table before.
#[inline(never)]
pub fn forget_flows_of(slot: u16) {
    // In the same order as the agent: see `learn_flow`.
    if let Some(numbers) = GENERATION.get_ptr_mut(0) {
        change(numbers.cast::<u32>().wrapping_add(GENERATION_PROGRAMS));
    }
    compiler_fence(Ordering::SeqCst);
    if let Some(epochs) = EPOCHS.get_ptr_mut(0) {
        change(at(epochs, slot));
    }
}

/// Changes a number. It adds a random value, not 1: two CPUs may write at the same time, and the
/// second write must not restore an earlier number.
#[inline(always)]
fn change(number: *mut u32) {
    // SAFETY: an aligned word of an array, which lives as long as the program.
    unsafe { write_volatile(number, read_volatile(number).wrapping_add(random() | 1)) };
}
