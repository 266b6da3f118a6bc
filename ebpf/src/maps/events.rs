//! Events for user space, and how many may be written: `EVENTS`, `EVENT_BUDGETS`.

use podwire_common::event::{EVENTS_PER_SECOND, Event};

use super::{EVENT_BUDGETS, EVENTS, clock::now};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

/// Returns the time, if this CPU may write one more event of a reason in this second, and counts
/// the event. An event that may not be written counts as lost.
#[inline(always)]
pub fn begin_event(reason: u32) -> Option<u64> {
    let budget = EVENT_BUDGETS.get_ptr_mut(reason)?;
    let time = now();
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
    // hooks.
    unsafe {
        if time.wrapping_sub((*budget).since) >= SECOND {
            ((*budget).since, (*budget).written) = (time, 0);
        }
        if (*budget).written >= EVENTS_PER_SECOND {
            (*budget).lost += 1;
            return None;
        }
        (*budget).written += 1;
    }
    Some(time)
}

/// Writes an event. If the ring is full, the event counts as lost.
#[inline(always)]
pub fn write_event(event: &Event, reason: u32) {
    if EVENTS.output(*event, 0).is_err()
        && let Some(budget) = EVENT_BUDGETS.get_ptr_mut(reason)
    {
        // SAFETY: this CPU's own element; see `begin_event`.
        unsafe { (*budget).lost += 1 };
    }
}
