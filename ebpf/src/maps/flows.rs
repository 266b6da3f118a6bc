//! Known flows, which bypass the host stack: `FLOWS` and `FLOWS6`.

use core::ptr::read_volatile;
use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::{
    abi::{Flow, FlowKey, KnownFlow},
    addr::{Addr, Quad},
    flow::FlowAddr,
};

use super::clock::is_fresh;
use super::epochs::{generation, sum_of_epochs};
use super::moments::moment;
use super::{FLOWS, FLOWS6, NEW_FLOW, NEW_FLOW6};

/// An address in one of the two tables of known flows, and the operations of that table.
pub trait Known: FlowAddr + 'static {
    /// Returns the entry of a key.
    fn get(key: &Self::Key) -> Option<&'static KnownFlow<Self>>;
    /// Adds or replaces an entry.
    fn insert(known: &KnownFlow<Self>);
    /// Removes the entry of a key.
    fn remove(key: &Self::Key);
    /// Returns the place where this CPU assembles an entry.
    fn place() -> Option<*mut KnownFlow<Self>>;
    /// Returns whether an entry has this key now. Reads the entry's key from memory.
    fn has_key(known: &KnownFlow<Self>, key: &Self::Key) -> bool;
    /// Does the same as [`Self::has_key`], but also reads `key` from memory. Otherwise the compiler
    /// would assemble the key again, byte by byte, from the values that it was made of.
    fn has_key_in_place(known: &KnownFlow<Self>, key: &Self::Key) -> bool;
}

macro_rules! operations {
    ($table:ident, $place:ident) => {
        #[inline(always)]
        fn get(key: &Self::Key) -> Option<&'static KnownFlow<Self>> {
            // SAFETY: a map element; see `endpoint`. The key in the element shows whether the
            // kernel has reused it: see `is_still`.
            unsafe { $table.get(key) }
        }

        #[inline(always)]
        fn insert(known: &KnownFlow<Self>) {
            let _ = $table.insert(&known.key, known, BPF_ANY.into());
        }

        #[inline(always)]
        fn remove(key: &Self::Key) {
            let _ = $table.remove(key);
        }

        #[inline(always)]
        fn place() -> Option<*mut KnownFlow<Self>> {
            $place.get_ptr_mut(0)
        }
    };
}

impl Known for Quad {
    operations!(FLOWS, NEW_FLOW);

    #[inline(always)]
    fn has_key(known: &KnownFlow, key: &FlowKey) -> bool {
        let key = (&raw const *key).cast::<u64>();
        // SAFETY: a key is two aligned words.
        are_words(&known.key, unsafe { [*key, *key.add(1)] })
    }

    #[inline(always)]
    fn has_key_in_place(known: &KnownFlow, key: &FlowKey) -> bool {
        let key = (&raw const *key).cast::<u64>();
        // SAFETY: a key is two aligned words.
        are_words(&known.key, unsafe { [read_volatile(key), read_volatile(key.add(1))] })
    }
}

#[inline(always)]
fn are_words(now: &FlowKey, key: [u64; 2]) -> bool {
    let now = (&raw const *now).cast::<u64>();
    // SAFETY: a key is two aligned words. Volatile: other CPUs may write the entry meanwhile.
    unsafe { read_volatile(now) == key[0] && read_volatile(now.add(1)) == key[1] }
}

impl Known for Addr {
    operations!(FLOWS6, NEW_FLOW6);

    #[inline(always)]
    fn has_key(known: &KnownFlow<Self>, key: &Flow) -> bool {
        Self::has_key_in_place(known, key)
    }

    // Written out: the compiler could make a loop, whose end Linux 6.1 does not see.
    #[inline(always)]
    fn has_key_in_place(known: &KnownFlow<Self>, key: &Flow) -> bool {
        let (now, key) = ((&raw const known.key).cast::<u32>(), (&raw const *key).cast::<u32>());
        // SAFETY: a key is ten aligned words. Volatile: other CPUs may write the entry meanwhile.
        let is = |word| unsafe { read_volatile(now.add(word)) == read_volatile(key.add(word)) };
        is(0) && is(1) && is(2) && is(3) && is(4) && is(5) && is(6) && is(7) && is(8) && is(9)
    }
}

const _: () = assert!(size_of::<FlowKey>() == 2 * size_of::<u64>());
const _: () = assert!(size_of::<Flow>() == 10 * size_of::<u32>());

/// Forgets what is known of a flow's reverse direction.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn forget_reverse<A: FlowAddr>(flow: &Flow) {
    forget::<A>(&flow.reversed());
}

/// Returns what is known of a flow, unless it is stale.
#[inline(always)]
pub fn known_flow<A: Known>(key: &A::Key) -> Option<&'static KnownFlow<A>> {
    let known = A::get(key)?;
    if !is_fresh(known.asked) || known.epochs != sum_of_epochs(&known.slots)? {
        return None;
    }
    Some(known)
}

/// Returns whether an entry still belongs to this flow. The caller asks after it has read
/// everything that it takes from the entry.
#[inline(always)]
pub fn is_still<A: Known>(known: &KnownFlow<A>, key: &A::Key) -> bool {
    compiler_fence(Ordering::SeqCst);
    A::has_key(known, key)
}

/// Does the same as [`is_still`], with [`Known::has_key_in_place`].
#[inline(always)]
pub fn is_still_in_place<A: Known>(known: &KnownFlow<A>, key: &A::Key) -> bool {
    compiler_fence(Ordering::SeqCst);
    A::has_key_in_place(known, key)
}

/// Returns the place where this CPU assembles a flow that it learns.
#[inline(always)]
pub fn new_flow<A: Known>() -> Option<&'static mut KnownFlow<A>> {
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
    // hooks.
    A::place().map(|known| unsafe { &mut *known })
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
#[inline(always)]
pub fn learn_flow<A: Known>(known: &mut KnownFlow<A>, since: u32) {
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
    A::insert(known);
    moment(3);
}

/// Forgets what is known of a flow.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn forget_flow<A: FlowAddr>(flow: &Flow) {
    forget::<A>(flow);
}

/// Does the same as [`forget_flow`]; the caller has stack for a key of IPv4.
#[inline(always)]
pub(super) fn forget<A: FlowAddr>(flow: &Flow) {
    if A::IS_IPV4 { Quad::remove(&Quad::key(flow)) } else { Addr::remove(flow) }
}

/// Forgets a flow by its entry: the key in the entry takes no stack.
#[inline(always)]
pub fn forget_known<A: Known>(known: &KnownFlow<A>) {
    A::remove(&known.key);
}
