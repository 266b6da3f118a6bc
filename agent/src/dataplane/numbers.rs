//! Numbers that the agent and the programs write at the same time.

#![expect(unsafe_code, reason = "a mapping of memory")]

use std::io;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::AtomicU32;

use aya::Pod;
use aya::maps::{Array, IterableMap as _, Map, MapData, MapError};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The only element of an array map, mapped into this process's memory as an array of numbers. A
/// system call would write the whole element, and overwrite numbers that a program has changed in
/// the meantime.
pub struct Numbers<V: Pod> {
    first: NonNull<AtomicU32>,
    /// The map behind the mapping; it lives as long as the mapping.
    map: Array<MapData, V>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all reads and writes are atomic.
unsafe impl<V: Pod> Send for Numbers<V> {}
// SAFETY: as for `Send`, the mapping belongs to the process and all accesses are atomic.
unsafe impl<V: Pod> Sync for Numbers<V> {}

impl<V: Pod> TryFrom<Map> for Numbers<V> {
    type Error = MapError;

    fn try_from(map: Map) -> Result<Self, MapError> {
        let map: Array<_, V> = map.try_into()?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: this makes a new mapping at an address that the kernel chooses. The map's element
        // has all of these bytes.
        let first = unsafe { mmap(null_mut(), size_of::<V>(), protection, flags, map.map().fd(), 0) };
        let first = first.map_err(|errno| MapError::IoError(io::Error::from(errno)))?;
        let first = NonNull::new(first.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { first, map })
    }
}

impl<V: Pod> Numbers<V> {
    /// Returns the map.
    pub(super) fn map(&self) -> &MapData {
        self.map.map()
    }

    /// Returns the number at an index.
    ///
    /// # Panics
    /// When the element has no such index.
    pub(super) fn of(&self, index: usize) -> &AtomicU32 {
        let count = size_of::<V>() / size_of::<AtomicU32>();
        assert!(index < count, "number {index} of {count}");
        // SAFETY: the number is within the mapping, which begins at a page and lives as long as
        // this value.
        unsafe { self.first.add(index).as_ref() }
    }
}

impl<V: Pod> Drop for Numbers<V> {
    fn drop(&mut self) {
        // SAFETY: this unmaps the mapping that was made with this value; no reference to it is
        // left.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), size_of::<V>()) };
    }
}
