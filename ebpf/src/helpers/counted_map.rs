//! aya's map types that the programs use, with operations that count themselves.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

use core::borrow::Borrow;

use aya_ebpf::{
    EbpfContext,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie::Key},
};
use podwire_common::helper::Helper;

use super::counted::add;

/// A map of the object, with counted operations.
#[derive(Clone, Copy)]
pub struct Counted<M: 'static>(pub &'static M);

macro_rules! counted_hash {
    ($type:ident, $lookup:ident, $update:ident, $delete:ident) => {
        #[allow(dead_code, reason = "one set of operations for both kinds")]
        impl<K, V, const ENTRIES: usize, const FLAGS: usize> Counted<$type<K, V, ENTRIES, FLAGS>> {
            /// Returns the value of a key.
            ///
            /// # Safety
            /// The caller must allow for the element being removed, overwritten or reused while the
            /// reference exists.
            #[inline(always)]
            pub unsafe fn get(self, key: impl Borrow<K>) -> Option<&'static V> {
                // SAFETY: the caller keeps this function's contract.
                let result = unsafe { self.0.get(key) };
                add::<{ Helper::$lookup as usize }>();
                result
            }

            /// Returns a pointer to the value of a key.
            #[inline(always)]
            pub fn get_ptr(self, key: impl Borrow<K>) -> Option<*const V> {
                let result = self.0.get_ptr(key);
                add::<{ Helper::$lookup as usize }>();
                result
            }

            /// Returns a pointer for writing the value of a key.
            #[inline(always)]
            pub fn get_ptr_mut(self, key: impl Borrow<K>) -> Option<*mut V> {
                let result = self.0.get_ptr_mut(key);
                add::<{ Helper::$lookup as usize }>();
                result
            }

            /// Writes an entry.
            ///
            /// # Errors
            /// The helper's error code.
            #[inline(always)]
            pub fn insert(self, key: impl Borrow<K>, value: impl Borrow<V>, flags: u64) -> Result<(), i32> {
                let result = self.0.insert(key, value, flags);
                add::<{ Helper::$update as usize }>();
                result
            }

            /// Removes an entry.
            ///
            /// # Errors
            /// The helper's error code.
            #[inline(always)]
            pub fn remove(self, key: impl Borrow<K>) -> Result<(), i32> {
                let result = self.0.remove(key);
                add::<{ Helper::$delete as usize }>();
                result
            }
        }
    };
}

counted_hash!(HashMap, HashLookup, HashUpdate, HashDelete);
counted_hash!(LruHashMap, LruLookup, LruUpdate, LruDelete);

impl<K, V, const ENTRIES: usize, const FLAGS: usize> Counted<LpmTrie<K, V, ENTRIES, FLAGS>> {
    /// Returns the value of the longest prefix that matches.
    #[inline(always)]
    pub fn get(self, key: &Key<K>) -> Option<&'static V> {
        let result = self.0.get(key);
        add::<{ Helper::LpmLookup as usize }>();
        result
    }
}

impl<T, const ENTRIES: usize, const FLAGS: usize> Counted<Array<T, ENTRIES, FLAGS>> {
    /// Returns a pointer for writing an element.
    #[inline(always)]
    pub fn get_ptr_mut(self, index: u32) -> Option<*mut T> {
        let element = self.0.get_ptr_mut(index);
        add::<{ Helper::ArrayLookup as usize }>();
        element
    }
}

impl<T, const ENTRIES: usize, const FLAGS: usize> Counted<PerCpuArray<T, ENTRIES, FLAGS>> {
    /// Returns a pointer for writing this CPU's element.
    #[inline(always)]
    pub fn get_ptr_mut(self, index: u32) -> Option<*mut T> {
        let result = self.0.get_ptr_mut(index);
        add::<{ Helper::ArrayLookup as usize }>();
        result
    }
}

impl<const PROGRAMS: usize> Counted<ProgramArray<PROGRAMS>> {
    /// Continues with another program. Returns only if the array has no such program.
    ///
    /// # Safety
    /// No value of the calling program may need to be dropped.
    #[inline(always)]
    pub unsafe fn tail_call<C: EbpfContext>(self, ctx: &C, index: u32) {
        // Count first: a successful tail call does not return.
        add::<{ Helper::TailCall as usize }>();
        // SAFETY: the caller keeps this function's contract.
        unsafe { self.0.tail_call(ctx, index) }
    }
}

impl<T, const BYTES: usize> Counted<RingBuf<T, BYTES>> {
    /// Writes a record.
    ///
    /// # Errors
    /// The helper's error code.
    #[inline(always)]
    pub fn output(self, record: impl Borrow<T>, flags: u64) -> Result<(), i32> {
        self.output_untyped::<T>(record, flags)
    }

    /// Writes a record of another type.
    ///
    /// # Errors
    /// The helper's error code.
    #[inline(always)]
    pub fn output_untyped<U>(self, record: impl Borrow<U>, flags: u64) -> Result<(), i32> {
        let result = self.0.output_untyped::<U>(record, flags);
        add::<{ Helper::RingbufOutput as usize }>();
        result
    }
}
