//! Moments at which a program learns a flow. In a build with `count-helpers`, a test chooses a
//! write for each moment. The program makes that write in place of the agent or another CPU.

#[cfg(feature = "count-helpers")]
use aya_ebpf::bindings::BPF_ANY;
#[cfg(feature = "count-helpers")]
use podwire_common::{abi::StackFlow, epoch::GENERATION_AGENT, helper::Moment};

#[cfg(feature = "count-helpers")]
use super::{EPOCHS, FLOWS, FLOWS6, GENERATION, LEARNING, STACK_FLOWS, TRANSLATIONS, epochs::at};

/// Does nothing. With `count-helpers`, it writes what a test has chosen for this moment.
#[cfg(not(feature = "count-helpers"))]
#[inline(always)]
pub(super) const fn moment(_: u32) {}

// The operations are not counted (`.0`), because the released programs do nothing here.
#[cfg(feature = "count-helpers")]
#[inline(never)]
pub(super) fn moment(index: u32) {
    // SAFETY: only tests write it, and not while a program runs.
    let Some(writes) = LEARNING.0.get_ptr_mut(index).map(|writes| unsafe { &*writes }) else {
        return;
    };
    if let Some(generation) = GENERATION.0.get_ptr_mut(0) {
        // SAFETY: an aligned word; in a test run no agent writes it.
        unsafe {
            (*generation)[GENERATION_AGENT] = (*generation)[GENERATION_AGENT].wrapping_add(writes.generation)
        };
    }
    if let Some(epochs) = EPOCHS.0.get_ptr_mut(0) {
        let epoch = at(epochs, writes.slot as u16);
        // SAFETY: an aligned word that no agent writes in a test run.
        unsafe { *epoch = (*epoch).wrapping_add(writes.epoch) };
    }
    let flow = &writes.flow;
    let _ = match writes.event {
        Moment::STACK_FLOW => STACK_FLOWS.0.insert(flow, StackFlow { last_seen: 0 }, BPF_ANY.into()),
        Moment::TRANSLATION_GONE => TRANSLATIONS.0.remove(flow),
        _ => return,
    };
    let _ = match flow.source.is_v4() {
        true => FLOWS.0.remove(flow.key()),
        false => FLOWS6.0.remove(flow),
    };
}
