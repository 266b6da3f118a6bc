//! Address translations of flows: `TRANSLATIONS`.

use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_NOEXIST;
use podwire_common::{
    abi::{Flow, Translation},
    flow::FlowAddr,
};

use super::TRANSLATIONS;
use super::clock::{REFRESH_NS, jiffies, now};
use super::flows::{forget, forget_flow};

/// One half of a translation, in the map.
// Not a plain pointer: `None` is then a null pointer, and no second value that may be uninitialized.
// The verifier refuses to pass on such a value.
pub struct TranslationEntry(NonNull<Translation>);

impl TranslationEntry {
    /// Returns the half. While it exists, only its state, its times and the flags `past_stack` and
    /// `is_long` change.
    #[inline(always)]
    pub fn get(&self) -> &'static Translation {
        // SAFETY: a map element; see `endpoint`.
        unsafe { self.0.as_ref() }
    }

    /// Marks both halves as seen now, in this state.
    #[inline(always)]
    pub fn touch(&self, protocol: u8, state: u8) {
        let now = now();
        // SAFETY: a map element; see `endpoint`.
        let (last_seen, known) = unsafe { ((*self.0.as_ptr()).last_seen, (*self.0.as_ptr()).state) };
        if known == state && now.wrapping_sub(last_seen) <= REFRESH_NS {
            return;
        }
        self.set(now, state);
        touch_other(self.get(), protocol, now, state);
    }

    /// Returns whether an earlier packet of this half's direction has bypassed the host stack.
    /// Records that this packet has bypassed it.
    #[inline(always)]
    pub fn mark_long(&self) -> bool {
        let was_long = self.get().is_long != 0;
        if !was_long {
            // SAFETY: a map element; see `endpoint`. A byte is written whole.
            unsafe { (*self.0.as_ptr()).is_long = 1 };
        }
        was_long
    }

    /// Sets in both halves whether the flow bypasses the host stack from now on. Forgets what is
    /// known of both directions.
    #[inline(always)]
    pub fn set_past_stack<A: FlowAddr>(&self, flow: &Flow, past_stack: bool) {
        if (self.get().past_stack != 0) != past_stack {
            set_both_past_stack::<A>(self.0.as_ptr(), flow, past_stack.into());
        }
    }

    /// Notes that the host's rules have just been asked about this half's first packet.
    #[inline(always)]
    pub fn set_asked(&self) {
        // SAFETY: a map element; see `endpoint`. A word is written whole.
        unsafe { (*self.0.as_ptr()).asked = jiffies() };
    }

    #[inline(always)]
    fn set(&self, now: u64, state: u8) {
        // SAFETY: a map element; see `endpoint`. Each field is written whole.
        unsafe {
            (*self.0.as_ptr()).last_seen = now;
            (*self.0.as_ptr()).state = state;
        }
    }
}

#[inline(never)]
fn set_both_past_stack<A: FlowAddr>(half: *mut Translation, flow: &Flow, past_stack: u8) {
    // SAFETY: a map element; see `endpoint`. A byte is written whole.
    unsafe { (*half).past_stack = past_stack };
    // SAFETY: a map element; see `endpoint`.
    let other_flow = unsafe { &*half }.other_half(flow.protocol);
    if let Some(other) = translation(&other_flow) {
        // SAFETY: a map element; see `endpoint`. A byte is written whole.
        unsafe { (*other.0.as_ptr()).past_stack = past_stack };
    }
    forget_flow::<A>(flow);
    forget_flow::<A>(&other_flow);
}

// Not inlined: the key would take stack in every caller.
#[inline(never)]
fn touch_other(half: &Translation, protocol: u8, now: u64, state: u8) {
    if let Some(other) = translation(&half.other_half(protocol)) {
        other.set(now, state);
    }
}

/// Returns the translation of a flow.
#[inline(always)]
pub fn translation(flow: &Flow) -> Option<TranslationEntry> {
    NonNull::new(TRANSLATIONS.get_ptr_mut(flow)?).map(TranslationEntry)
}

/// Adds one half of a translation if there is none.
///
/// # Errors
/// [`EEXIST`] when there is one; otherwise the map is full or memory is short.
#[inline(always)]
pub fn add_translation<A: FlowAddr>(flow: &Flow, translation: &Translation) -> Result<(), i32> {
    TRANSLATIONS.insert(flow, translation, BPF_NOEXIST.into())?;
    // Do not call `forget_flow`: this is the deepest point of the call chain, and before Linux 6.8
    // a call takes at least 32 bytes of stack.
    forget::<A>(flow);
    Ok(())
}

/// Removes one half of a translation.
#[inline(always)]
pub fn remove_translation<A: FlowAddr>(flow: &Flow) {
    let _ = TRANSLATIONS.remove(flow);
    forget_flow::<A>(flow);
}
