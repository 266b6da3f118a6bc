//! Counters: `DROPS`, `TRAFFIC`.

use podwire_common::abi::Count;
use podwire_common::reason::{Drop, Path};

use super::{DROPS, TRAFFIC};

/// Counts a dropped packet.
#[inline(always)]
pub fn count_drop(reason: Drop, bytes: u32) {
    add(DROPS.get_ptr_mut(reason as u32), bytes);
}

/// Counts a packet under the path that it takes.
#[inline(always)]
pub fn count_path(path: Path, bytes: u32) {
    count_traffic(path as u32, bytes);
}

/// Does the same as [`count_path`], with the number of the path.
#[inline(always)]
pub fn count_traffic(path: u32, bytes: u32) {
    add(TRAFFIC.get_ptr_mut(path), bytes);
}

#[inline(always)]
fn add(count: Option<*mut Count>, bytes: u32) {
    if let Some(count) = count {
        // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
        // hooks.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}
