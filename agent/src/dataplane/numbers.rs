//! Numbers that the agent and the programs write at the same time.

#![expect(unsafe_code, reason = "a mapping of memory")]

use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU32;

use aya::Ebpf;
use aya::maps::{Array, IterableMap as _, MapData};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::maps::take;
use crate::error::Error;

/// The one element of an array map, in this process's memory. A system call would write the whole element, and with it
/// numbers that a program has changed meanwhile.
pub(super) struct Numbers<const COUNT: usize> {
    first: NonNull<AtomicU32>,
    /// Of the mapping; it lives as long as the map.
    _map: Array<MapData, [u32; COUNT]>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is read and written by atomic operations only.
unsafe impl<const COUNT: usize> Send for Numbers<COUNT> {}
// SAFETY: as above.
unsafe impl<const COUNT: usize> Sync for Numbers<COUNT> {}

impl<const COUNT: usize> Numbers<COUNT> {
    const BYTES: usize = COUNT * size_of::<AtomicU32>();

    /// Takes the map of a name out of a loaded object.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::Map`].
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let map: Array<_, [u32; COUNT]> = take(ebpf, name)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping, wherever the kernel puts it. The map's element has all of these bytes.
        let first = unsafe { mmap(null_mut(), Self::BYTES, protection, flags, map.map().fd(), 0) };
        let first = first.map_err(|errno| Error::Load { object: name.into(), source: errno.into() })?;
        let first = NonNull::new(first.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { first, _map: map })
    }

    /// The number at an index, which is below `COUNT`.
    pub(super) fn of(&self, index: usize) -> &AtomicU32 {
        assert!(index < COUNT, "number {index} of {COUNT}");
        // SAFETY: within the mapping, which begins at a page and lives as long as this value.
        unsafe { self.first.add(index).as_ref() }
    }
}

impl<const COUNT: usize> Drop for Numbers<COUNT> {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made with this value; no reference to it is left.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), Self::BYTES) };
    }
}
