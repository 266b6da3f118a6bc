//! Known flows, which bypass the host stack: `FLOWS`.

use core::ptr::read_volatile;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{Flow, FlowKey, KnownFlow};

use super::clock::is_fresh;
use super::epochs::{generation, sum_of_epochs};
use super::moments::moment;
use super::{FLOWS, NEW_FLOW};

/// Forgets what is known of a flow's reverse direction.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn forget_reverse(flow: &Flow) {
    let _ = FLOWS.remove(flow.reversed().key());
}

/// Returns what is known of a flow, unless it is stale.
#[inline(always)]
pub fn known_flow(key: &FlowKey) -> Option<&'static KnownFlow> {
    // SAFETY: a map element; see `endpoint`. The key in the element shows whether the kernel has
    // reused it: see `is_still`.
    let known = unsafe { FLOWS.get(key) }?;
    if !is_fresh(known.asked) || known.epochs != sum_of_epochs(&known.slots)? {
        return None;
    }
    Some(known)
}

/// Returns whether an entry still belongs to this flow. The caller asks after it has read
/// everything that it takes from the entry.
#[inline(always)]
pub fn is_still(known: &KnownFlow, key: &FlowKey) -> bool {
    let key = (&raw const *key).cast::<u64>();
    // SAFETY: a key is two aligned words.
    is_still_words(known, unsafe { [*key, *key.add(1)] })
}

/// Does the same as [`is_still`], but reads the key from memory. Otherwise the compiler would
/// assemble the key again, byte by byte, from the values that it was made of.
#[inline(always)]
pub fn is_still_in_place(known: &KnownFlow, key: &FlowKey) -> bool {
    let key = (&raw const *key).cast::<u64>();
    // SAFETY: a key is two aligned words.
    is_still_words(known, unsafe { [read_volatile(key), read_volatile(key.add(1))] })
}

#[inline(always)]
fn is_still_words(known: &KnownFlow, key: [u64; 2]) -> bool {
    compiler_fence(Ordering::SeqCst);
    let now = (&raw const known.key).cast::<u64>();
    // SAFETY: a key is two aligned words. Volatile: other CPUs may write the entry meanwhile.
    unsafe { read_volatile(now) == key[0] && read_volatile(now.add(1)) == key[1] }
}

/// Returns the place where this CPU assembles a flow that it learns.
#[inline(always)]
pub fn new_flow() -> Option<&'static mut KnownFlow> {
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
    // hooks.
    NEW_FLOW.get_ptr_mut(0).map(|known| unsafe { &mut *known })
}

/// Learns a flow that was judged since the [`generation`] `since`, unless anything has changed
/// since then. If the flow is not learnt, its next packets only take longer.
///
/// The agent writes a table, then `GENERATION`, then `EPOCHS`. The program reads them in the
/// opposite order. A verdict that is older than the table's change was made before `GENERATION`
/// changed. If the second read of `GENERATION` does not see that change, `EPOCHS` changes after
/// this function read it, and the entry becomes stale. On processors that reorder reads, this is
/// nearly certain but not guaranteed. In any case an entry becomes stale after
/// [`KNOWN_FLOW_JIFFIES`].
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

/// Forgets what is known of a flow.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn forget_flow(flow: &Flow) {
    let _ = FLOWS.remove(flow.key());
}

/// Forgets a flow by its entry: the key in the entry takes no stack.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn forget_known(known: &KnownFlow) {
    let _ = FLOWS.remove(&known.key);
}
