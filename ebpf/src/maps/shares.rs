//! Who holds how many entries of tables that never evict: `HOLDERS`, `ROOM`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::BPF_NOEXIST;
use podwire_common::abi::Holder;

use super::{HOLDERS, ROOM};

/// Takes entries of a table for a holder; `false`: the holder has its share already.
///
/// Nobody may hold more entries than are free: the dynamic threshold of Choudhury and Hahne (IEEE/ACM
/// Transactions on Networking 6, 1998). One flooding holder gets half of the table, two get a third
/// each, and what is always left is enough for the new flows of everybody else.
///
/// Two CPUs that count at the same moment may lose one of the counts. The agent counts every entry when
/// it ages the tables out, and writes both maps anew.
#[inline(always)]
pub fn take_share(holder: &Holder, entries: u32) -> bool {
    let Some(room) = ROOM.get_ptr_mut(holder.table.into()) else {
        return true;
    };
    // SAFETY: as for endpoints; an aligned word.
    let free = unsafe { read_volatile(room) };
    match HOLDERS.get_ptr_mut(holder) {
        Some(held) => {
            // SAFETY: as above.
            let held_before = unsafe { read_volatile(held) };
            if held_before >= free {
                return false;
            }
            // SAFETY: as above.
            unsafe { write_volatile(held, held_before.wrapping_add(entries)) };
        }
        // Where there is no room for a holder its entries are not counted until the agent counts them.
        None => drop(HOLDERS.insert(holder, entries, BPF_NOEXIST.into())),
    }
    // SAFETY: as above.
    unsafe { write_volatile(room, free.saturating_sub(entries)) };
    true
}

/// Gives entries of a table back that [`take_share`] took.
#[inline(always)]
pub fn give_back(holder: &Holder, entries: u32) {
    if let Some(room) = ROOM.get_ptr_mut(holder.table.into()) {
        // SAFETY: as above.
        unsafe { write_volatile(room, read_volatile(room).wrapping_add(entries)) };
    }
    if let Some(held) = HOLDERS.get_ptr_mut(holder) {
        // SAFETY: as above.
        unsafe { write_volatile(held, read_volatile(held).saturating_sub(entries)) };
    }
}
