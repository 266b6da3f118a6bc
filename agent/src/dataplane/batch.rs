//! Reading a hash map thousands of entries at a time. aya asks the kernel twice for each: a walk of 100,000 entries takes a quarter
//! of a second so, and a twentieth of that in batches.

#![expect(unsafe_code, reason = "a system call that takes pointers and a length")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};

use aya::Pod;

/// Of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
/// Entries that a call has room for. The kernel gives whole buckets, which hold a few entries each.
const ROOM: usize = 4096;

/// The part of `union bpf_attr` for batches (Linux 5.6).
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: RawFd,
    element_flags: u64,
    flags: u64,
}

/// Shows every entry of a hash map (LRU or not, per CPU not) whose keys and values are of these types. What is removed or added
/// meanwhile may be shown or not; what stays is shown once.
///
/// # Errors
/// The kernel's.
pub(super) fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut show: impl FnMut(&K, &V)) -> io::Result<()> {
    let (mut keys, mut values) = (Vec::<K>::with_capacity(ROOM), Vec::<V>::with_capacity(ROOM));
    // The bucket that the next call begins with.
    let mut next = 0_u32;
    let mut begun = false;
    loop {
        let bucket = next;
        let mut batch = Batch {
            in_batch: if begun { &raw const bucket as u64 } else { 0 },
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ROOM as u32,
            map: map.as_raw_fd(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads the attributes, as many bytes as they have, and `bucket`; it writes `next`, the count, and at
        // most `count` keys and values, of the sizes that the map was made with: those of `K` and `V`, for which there is room.
        // All of it outlives the call.
        let outcome =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut batch, size_of::<Batch>()) };
        let outcome = if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        let last = match outcome {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // Somebody had the bucket: the next call begins with it.
                Some(libc::EBUSY) => false,
                _ => return Err(error),
            },
        };
        let count = (batch.count as usize).min(ROOM);
        // SAFETY: the kernel has written so many, there is room for them, and any bytes are a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        keys.iter().zip(&values).for_each(|(key, value)| show(key, value));
        if last {
            return Ok(());
        }
        begun = true;
    }
}
