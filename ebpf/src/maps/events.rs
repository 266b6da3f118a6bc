//! Events for user space, who wants them, and how many may be written: `EVENTS`, `LISTENING`,
//! `EVENT_BUDGETS`, `VERDICTS_LOST`. How many packets may be answered: `ANSWER_BUDGET`.

use core::hint::black_box;
use core::ptr::{read_volatile, write_bytes};

use aya_ebpf::bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use podwire_common::{
    abi::Flow,
    addr::{Addr, Quad},
    event::{ANSWERS_PER_SECOND, Budget, EVENTS_PER_SECOND, Event, Kind, Listening, Packet, VERDICTS},
    flow::FlowAddr,
};

use super::flows::Known;
use super::{
    ANSWER_BUDGET, EVENT_BUDGETS, EVENTS, NEW_EVENT, NEW_PACKET, STACK_FLOWS, TRANSLATIONS, VERDICTS_LOST,
    clock::now,
};

/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;

// The agent writes it while the programs run. A variable and not a map of its own: reading it takes
// neither a lookup nor stack.
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data")]
static mut LISTENING: Listening = Listening::NOBODY;

/// Returns whether somebody wants events of new flows.
#[inline(always)]
pub fn is_listened_to() -> bool {
    // SAFETY: an aligned word. Volatile: the agent replaces the value that the compiler sees.
    unsafe { read_volatile(&raw const LISTENING.kinds) & VERDICTS != 0 }
}

/// Returns whether somebody wants packets.
#[inline(always)]
pub fn is_captured() -> bool {
    // SAFETY: see `is_listened_to`.
    unsafe { read_volatile(&raw const LISTENING.kinds) & Kind::Packet.bit() != 0 }
}

/// Returns what listeners want.
#[inline(always)]
pub fn listening() -> &'static Listening {
    // The box keeps the compiler from computing with the initial value.
    // SAFETY: the agent writes one part of the value at a time. It lets the programs write too many
    // events rather than too few while it does so.
    unsafe { &*black_box(&raw const LISTENING) }
}

/// Returns the event that this CPU has begun last.
#[inline(always)]
pub fn begun_event() -> Option<&'static mut Event> {
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
    // hooks.
    NEW_EVENT.get_ptr_mut(0).map(|event| unsafe { &mut *event })
}

/// Begins an event of zeros.
#[inline(always)]
pub fn new_event() -> Option<&'static mut Event> {
    let event = begun_event()?;
    // In place: the compiler would make a value on the stack first.
    // SAFETY: zeros are a valid event.
    unsafe { write_bytes(&raw mut *event, 0, 1) };
    Some(event)
}

/// Begins a packet with an event of zeros.
#[inline(always)]
pub fn new_packet() -> Option<&'static mut Packet> {
    let packet = NEW_PACKET.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element; see `begun_event`. Zeros are a valid event.
    unsafe {
        write_bytes(&raw mut (*packet).event, 0, 1);
        Some(&mut *packet)
    }
}

/// Returns the time, if this CPU may write one more event of a reason in this second, and counts
/// the event. An event that may not be written counts as lost.
#[inline(always)]
pub fn take_from_budget(reason: u32) -> Option<u64> {
    take(EVENT_BUDGETS.get_ptr_mut(reason)?, EVENTS_PER_SECOND)
}

/// Returns whether this CPU may answer one more packet of a client outside in this second.
#[inline(always)]
pub fn may_answer() -> bool {
    ANSWER_BUDGET.get_ptr_mut(0).is_some_and(|budget| take(budget, ANSWERS_PER_SECOND).is_some())
}

#[inline(always)]
fn take(budget: *mut Budget, per_second: u64) -> Option<u64> {
    let time = now();
    // SAFETY: this CPU's own element; see `begun_event`.
    unsafe {
        if time.wrapping_sub((*budget).since) >= SECOND {
            ((*budget).since, (*budget).written) = (time, 0);
        }
        if (*budget).written >= per_second {
            (*budget).lost += 1;
            return None;
        }
        (*budget).written += 1;
    }
    Some(time)
}

/// Writes the event of a drop. If the ring is full, the event counts as lost. The kernel would not
/// wake the agent by itself while an event of a new flow waits: see [`write_verdict`].
#[inline(always)]
pub fn write_event(event: &Event, reason: u32) {
    if EVENTS.output(event, BPF_RB_FORCE_WAKEUP.into()).is_err()
        && let Some(budget) = EVENT_BUDGETS.get_ptr_mut(reason)
    {
        // SAFETY: this CPU's own element; see `begun_event`.
        unsafe { (*budget).lost += 1 };
    }
}

/// Writes the event of a new flow. If the ring is full, the event counts as lost. The agent looks
/// after these events by itself: waking it for each of them would cost more than the event.
#[inline(always)]
pub fn write_verdict(event: &Event) {
    if EVENTS.output(event, BPF_RB_NO_WAKEUP.into()).is_err() {
        count_lost(event.kind);
    }
}

/// Writes a packet, as [`write_verdict`] does an event.
#[inline(always)]
pub fn write_packet(packet: &Packet) {
    if EVENTS.output_untyped::<Packet>(packet, BPF_RB_NO_WAKEUP.into()).is_err() {
        count_lost(Kind::Packet as u8);
    }
}

#[inline(always)]
fn count_lost(kind: u8) {
    if let Some(lost) = VERDICTS_LOST.get_ptr_mut(kind.into()) {
        // SAFETY: this CPU's own element; see `begun_event`.
        unsafe { *lost += 1 };
    }
}

/// Returns whether a table has an entry for a flow, valid or not, or for its replies.
#[inline(always)]
pub fn is_noted<A: FlowAddr>(flow: &Flow) -> bool {
    TRANSLATIONS.get_ptr(flow).is_some() || is_of_one_way::<A>(flow) || is_of_one_way::<A>(&flow.reversed())
}

#[inline(always)]
fn is_of_one_way<A: FlowAddr>(flow: &Flow) -> bool {
    STACK_FLOWS.get_ptr(flow).is_some()
        || if A::IS_IPV4 { Quad::get(&Quad::key(flow)).is_some() } else { Addr::get(flow).is_some() }
}
