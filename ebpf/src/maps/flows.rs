//! What is known of flows that go past the host stack: `FLOWS`.

use core::ptr::read_volatile;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{Flow, FlowKey, KnownFlow};

use super::clock::is_fresh;
use super::epochs::{generation, sum_of_epochs};
use super::moments::moment;
use super::{FLOWS, NEW_FLOW};

/// As [`forget_flow`], of the flow's reverse.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn forget_reverse(flow: &Flow) {
    let _ = FLOWS.remove(flow.reversed().key());
}

/// What is known of a flow, if that still counts.
#[inline(always)]
pub fn known_flow(key: &FlowKey) -> Option<&'static KnownFlow> {
    // SAFETY: as for endpoints; an element that is used again meanwhile is told by its key.
    let known = unsafe { FLOWS.get(key) }?;
    if !is_fresh(known.asked) || known.epochs != sum_of_epochs(&known.slots)? {
        return None;
    }
    Some(known)
}

/// Whether an entry is this flow's at this moment: asked after everything that is taken from it has been read.
#[inline(always)]
pub fn is_still(known: &KnownFlow, key: &FlowKey) -> bool {
    let key = (&raw const *key).cast::<u64>();
    // SAFETY: a key, two aligned words.
    is_still_words(known, unsafe { [*key, *key.add(1)] })
}

/// As [`is_still`], with the key read from memory: the compiler would put it together again, byte by byte, from what it
/// was made of.
#[inline(always)]
pub fn is_still_in_place(known: &KnownFlow, key: &FlowKey) -> bool {
    let key = (&raw const *key).cast::<u64>();
    // SAFETY: as above.
    is_still_words(known, unsafe { [read_volatile(key), read_volatile(key.add(1))] })
}

#[inline(always)]
fn is_still_words(known: &KnownFlow, key: [u64; 2]) -> bool {
    compiler_fence(Ordering::SeqCst);
    let now = (&raw const known.key).cast::<u64>();
    // SAFETY: as above. Volatile: others write the entry meanwhile.
    unsafe { read_volatile(now) == key[0] && read_volatile(now.add(1)) == key[1] }
}

/// Where this CPU puts together what is to be learnt of a flow.
#[inline(always)]
pub fn new_flow() -> Option<&'static mut KnownFlow> {
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these hooks.
    NEW_FLOW.get_ptr_mut(0).map(|known| unsafe { &mut *known })
}

/// Learns a flow that was judged since a [`generation`], unless anything has changed since then. A loss costs time,
/// nothing else.
///
/// The agent writes a table, then `GENERATION`, then `EPOCHS`. The program reads in the other order. A verdict that is
/// older than the table's change was judged before `GENERATION` changed: if the second reading does not see that change,
/// the epochs change after they were read here, and the entry ends with them. Processors that reorder reads make this
/// nearly sure, not quite; what is learnt ends by itself after [`KNOWN_FLOW_JIFFIES`].
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn learn_flow(known: &mut KnownFlow, since: u32) {
    moment(0);
    let Some(epochs) = sum_of_epochs(&known.slots) else {
        return;
    };
    known.epochs = epochs;
    compiler_fence(Ordering::SeqCst);
    moment(1);
    if generation() != since {
        return;
    }
    moment(2);
    let _ = FLOWS.insert(&known.key, &*known, BPF_ANY.into());
    moment(3);
}

/// Forgets what was found out about a flow.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn forget_flow(flow: &Flow) {
    let _ = FLOWS.remove(flow.key());
}

/// As [`forget_flow`], by what was remembered: its key is on the stack already.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn forget_known(known: &KnownFlow) {
    let _ = FLOWS.remove(&known.key);
}
