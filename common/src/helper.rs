//! The kernel helpers that the programs call. A build of the object that counts helper calls tells
//! them apart by these numbers.

use crate::abi::Flow;
use crate::addr::{Addr, Be16};

macro_rules! helpers {
    ($($(#[$attribute:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// A kernel helper, or an operation on a kind of map.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "std"), derive(Debug))]
        pub enum Helper { $($(#[$attribute])* $variant),* }

        impl Helper {
            /// All variants, in order of number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the kernel's name of the helper, without `bpf_`; for a map operation, the
            /// kind of map and the operation.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

helpers! {
    /// Lookup in a hash.
    HashLookup "hash lookup",
    /// Lookup in an LRU hash.
    LruLookup "lru lookup",
    /// Longest-prefix match.
    LpmLookup "lpm lookup",
    /// Lookup in an array, per CPU or not. The kernel replaces the call with a bounds check and an
    /// addition.
    ArrayLookup "array lookup (inlined)",
    /// An entry of a hash written.
    HashUpdate "hash update",
    /// An entry of an LRU hash written.
    LruUpdate "lru update",
    /// An entry of a hash removed.
    HashDelete "hash delete",
    /// An entry of an LRU hash removed.
    LruDelete "lru delete",
    /// `bpf_skb_load_bytes`.
    SkbLoadBytes "skb_load_bytes",
    /// `bpf_skb_store_bytes`.
    SkbStoreBytes "skb_store_bytes",
    /// `bpf_skb_adjust_room`.
    SkbAdjustRoom "skb_adjust_room",
    /// `bpf_skb_change_head`.
    SkbChangeHead "skb_change_head",
    /// `bpf_skb_change_tail`.
    SkbChangeTail "skb_change_tail",
    /// `bpf_skb_change_type`.
    SkbChangeType "skb_change_type",
    /// `bpf_skb_get_tunnel_key`.
    SkbGetTunnelKey "skb_get_tunnel_key",
    /// `bpf_skb_set_tunnel_key`.
    SkbSetTunnelKey "skb_set_tunnel_key",
    /// `bpf_csum_diff`.
    CsumDiff "csum_diff",
    /// `bpf_l3_csum_replace`.
    L3CsumReplace "l3_csum_replace",
    /// `bpf_l4_csum_replace`.
    L4CsumReplace "l4_csum_replace",
    /// `bpf_fib_lookup`.
    FibLookup "fib_lookup",
    /// `bpf_redirect`.
    Redirect "redirect",
    /// `bpf_redirect_neigh`.
    RedirectNeigh "redirect_neigh",
    /// `bpf_redirect_peer`.
    RedirectPeer "redirect_peer",
    /// `bpf_skc_lookup_tcp`.
    SkcLookupTcp "skc_lookup_tcp",
    /// `bpf_sk_lookup_udp`.
    SkLookupUdp "sk_lookup_udp",
    /// `bpf_sk_release`.
    SkRelease "sk_release",
    /// `bpf_ktime_get_ns`.
    KtimeGetNs "ktime_get_ns",
    /// `bpf_jiffies64`. The kernel replaces the call with a load on x86-64.
    Jiffies64 "jiffies64 (inlined)",
    /// `bpf_get_prandom_u32`.
    GetPrandomU32 "get_prandom_u32",
    /// `bpf_get_socket_cookie`.
    GetSocketCookie "get_socket_cookie",
    /// `bpf_get_netns_cookie`.
    GetNetnsCookie "get_netns_cookie",
    /// `bpf_set_retval`.
    SetRetval "set_retval",
    /// `bpf_probe_read_kernel`.
    ProbeReadKernel "probe_read_kernel",
    /// `bpf_tail_call`. The kernel replaces the call with a jump.
    TailCall "tail_call (inlined)",
    /// `bpf_ringbuf_output`.
    RingbufOutput "ringbuf_output",
}

impl Helper {
    /// Returns whether this is a lookup of a key in a map, by a call.
    pub const fn is_map_lookup(self) -> bool {
        matches!(self, Self::HashLookup | Self::LruLookup | Self::LpmLookup)
    }

    /// Returns whether the kernel replaces the call with other instructions. [`Self::Jiffies64`] is
    /// left out, although the kernel replaces that call on x86-64.
    pub const fn is_inlined(self) -> bool {
        matches!(self, Self::ArrayLookup | Self::TailCall)
    }
}

/// Entries of the array of counts.
pub const HELPER_SLOTS: usize = 64;

/// The section of the object that holds the counts of a build with the feature `count-helpers`:
/// [`HELPER_SLOTS`] 64-bit numbers and nothing else.
pub const HELPER_CALLS: &str = ".bss";

/// In a build with the feature `count-helpers`: writes that the programs make at one moment while
/// they learn a flow, as if the agent or a program on another CPU made them just then. So a test
/// can place a change at each moment of learning.
#[repr(C)]
#[derive(Clone, Copy)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Moment {
    /// Added to the agent's element of `GENERATION`.
    pub generation: u32,
    /// A slot of `EPOCHS`.
    pub slot: u32,
    /// Added to that slot.
    pub epoch: u32,
    /// 1: [`Self::flow`] becomes a stack flow. 2: its translation is removed. 0: neither.
    pub event: u32,
    /// See [`Self::event`].
    pub flow: Flow,
}

impl Moment {
    /// A moment at which nothing is written.
    pub const QUIET: Self = Self {
        generation: 0,
        slot: 0,
        epoch: 0,
        event: 0,
        flow: Flow::new(Addr::UNSPECIFIED, Addr::UNSPECIFIED, Be16::ZERO, Be16::ZERO, 0),
    };
    /// Value of [`Self::event`]: [`Self::flow`] becomes a stack flow.
    pub const STACK_FLOW: u32 = 1;
    /// Value of [`Self::event`]: the translation of [`Self::flow`] is removed.
    pub const TRANSLATION_GONE: u32 = 2;
}

crate::abi::plain! {
    Moment: 56,
}

/// The moments of learning: before the epochs are read, after that, after `GENERATION` was
/// compared, and after the flow is in the table.
pub const MOMENTS: usize = 4;

/// The map of [`Moment`]s.
pub const LEARNING: &str = "LEARNING";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn numbers_fit_the_array_and_names_are_unique() {
        assert!(Helper::ALL.iter().all(|helper| (*helper as usize) < HELPER_SLOTS));
        let names: BTreeSet<_> = Helper::ALL.iter().map(|helper| helper.name()).collect();
        assert_eq!(names.len(), Helper::ALL.len());
    }
}
