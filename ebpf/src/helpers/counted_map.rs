//! Maps that count the operations on them: those of aya's types that the programs use.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

use core::borrow::Borrow;

use aya_ebpf::btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key};
use podwire_common::helper::Helper;

use super::counted::add;

/// A map of the object.
#[derive(Clone, Copy)]
pub struct Counted<M: 'static>(pub &'static M);

macro_rules! counted_hash {
    ($type:ident, $lookup:ident, $update:ident, $delete:ident) => {
        #[allow(dead_code, reason = "one set of operations for both kinds")]
        impl<K, V, const ENTRIES: usize, const FLAGS: usize> Counted<$type<K, V, ENTRIES, FLAGS>> {
            /// The value of a key.
            ///
            /// # Safety
            /// The element may be removed, written and used again while the reference is there.
            #[inline(always)]
            pub unsafe fn get(self, key: impl Borrow<K>) -> Option<&'static V> {
                add(Helper::$lookup);
                // SAFETY: by the contract.
                unsafe { self.0.get(key) }
            }

            /// Where the value of a key is.
            #[inline(always)]
            pub fn get_ptr(self, key: impl Borrow<K>) -> Option<*const V> {
                add(Helper::$lookup);
                self.0.get_ptr(key)
            }

            /// Where the value of a key is, to be written.
            #[inline(always)]
            pub fn get_ptr_mut(self, key: impl Borrow<K>) -> Option<*mut V> {
                add(Helper::$lookup);
                self.0.get_ptr_mut(key)
            }

            /// Writes an entry.
            ///
            /// # Errors
            /// The helper's.
            #[inline(always)]
            pub fn insert(self, key: impl Borrow<K>, value: impl Borrow<V>, flags: u64) -> Result<(), i32> {
                add(Helper::$update);
                self.0.insert(key, value, flags)
            }

            /// Removes an entry.
            ///
            /// # Errors
            /// The helper's.
            #[inline(always)]
            pub fn remove(self, key: impl Borrow<K>) -> Result<(), i32> {
                add(Helper::$delete);
                self.0.remove(key)
            }
        }
    };
}

counted_hash!(HashMap, HashLookup, HashUpdate, HashDelete);
counted_hash!(LruHashMap, LruLookup, LruUpdate, LruDelete);

impl<K, V, const ENTRIES: usize, const FLAGS: usize> Counted<LpmTrie<K, V, ENTRIES, FLAGS>> {
    /// The value of the longest prefix that matches.
    #[inline(always)]
    pub fn get(self, key: &Key<K>) -> Option<&'static V> {
        add(Helper::LpmLookup);
        self.0.get(key)
    }
}

impl<T, const ENTRIES: usize, const FLAGS: usize> Counted<PerCpuArray<T, ENTRIES, FLAGS>> {
    /// Where this CPU's element is, to be written.
    #[inline(always)]
    pub fn get_ptr_mut(self, index: u32) -> Option<*mut T> {
        add(Helper::ArrayLookup);
        self.0.get_ptr_mut(index)
    }
}
