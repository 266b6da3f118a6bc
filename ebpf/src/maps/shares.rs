//! Shares of the tables that never evict: `HOLDERS`, `ROOM`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use podwire_common::abi::Holder;

use super::{HOLDERS, ROOM};

/// Takes entries of a table for a holder. Returns `false` if the holder has its share already.
///
/// No holder may have more entries than are free. This is the dynamic threshold of Choudhury and
/// Hahne (IEEE/ACM Transactions on Networking 6, 1998). One flooding holder gets half of the table,
/// two get a third each. Some entries always remain, enough for the new flows of all others.
///
/// If two CPUs count at the same moment, one of the counts may be lost. The agent counts every
/// entry when it ages the tables, and then rewrites both maps.
#[inline(always)]
pub fn take_share(holder: &Holder, entries: u32) -> bool {
    let Some(room) = ROOM.get_ptr_mut(holder.table.into()) else {
        return true;
    };
    // SAFETY: an aligned word of a map element; see `endpoint`.
    let free = unsafe { read_volatile(room) };
    match HOLDERS.get_ptr_mut(holder) {
        Some(held) => {
            // SAFETY: an aligned word of a map element; see `endpoint`.
            let held_before = unsafe { read_volatile(held) };
            if held_before >= free {
                return false;
            }
            // SAFETY: an aligned word of a map element; see `endpoint`.
            unsafe { write_volatile(held, held_before.wrapping_add(entries)) };
        }
        // If there is no room for a holder, its entries stay uncounted until the agent counts them.
        None => drop(HOLDERS.insert(holder, entries, BPF_NOEXIST.into())),
    }
    // SAFETY: an aligned word of a map element; see `endpoint`.
    unsafe { write_volatile(room, free.saturating_sub(entries)) };
    true
}

/// Gives back entries of a table that [`take_share`] took.
#[inline(always)]
pub fn give_back(holder: &Holder, entries: u32) {
    if let Some(room) = ROOM.get_ptr_mut(holder.table.into()) {
        // SAFETY: an aligned word of a map element; see `endpoint`.
        unsafe { write_volatile(room, read_volatile(room).wrapping_add(entries)) };
    }
    if let Some(held) = HOLDERS.get_ptr_mut(holder) {
        // SAFETY: an aligned word of a map element; see `endpoint`.
        unsafe { write_volatile(held, read_volatile(held).saturating_sub(entries)) };
    }
}
