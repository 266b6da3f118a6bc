//! All kernel helpers that the programs call, under the kernel's names, and all maps. They are in
//! one place so that a build with the feature `count-helpers` counts every call. Without the
//! feature, these are the plain helpers and aya's plain maps.
#![expect(clippy::disallowed_methods, reason = "the one place that calls them")]

#[cfg(feature = "count-helpers")]
mod counted;
#[cfg(feature = "count-helpers")]
pub mod counted_map;

use aya_ebpf::{cty::c_long, programs::TcContext};
use podwire_common::helper::Helper;

#[cfg(not(feature = "count-helpers"))]
pub use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
#[cfg(not(feature = "count-helpers"))]
pub use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_fib_lookup, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
    bpf_jiffies64, bpf_ktime_get_ns, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_set_retval,
    bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type,
    bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_set_tunnel_key, bpf_skc_lookup_tcp,
};
#[cfg(feature = "count-helpers")]
pub use counted::{
    bpf_csum_diff, bpf_fib_lookup, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie,
    bpf_jiffies64, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_redirect, bpf_redirect_neigh,
    bpf_redirect_peer, bpf_set_retval, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_change_head,
    bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_load_bytes,
    bpf_skb_set_tunnel_key, bpf_skc_lookup_tcp,
};

/// Counts a call, in a build with `count-helpers`.
#[inline(always)]
fn count<const HELPER: usize>() {
    #[cfg(feature = "count-helpers")]
    counted::add::<HELPER>();
}

/// Declares maps: statics of aya's types.
#[cfg(not(feature = "count-helpers"))]
macro_rules! maps {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $new:expr;)*) => { $(
        $(#[$attribute])*
        #[aya_ebpf::macros::btf_map]
        static $name: $type = $new;
    )* };
}

/// Declares maps. The constant hides the static that the loader knows, so programs reach a map only
/// through its counted operations.
#[cfg(feature = "count-helpers")]
macro_rules! maps {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = $new:expr;)*) => { $(
        $(#[$attribute])*
        const $name: $crate::helpers::counted_map::Counted<$type> = {
            #[aya_ebpf::macros::btf_map]
            static $name: $type = $new;
            $crate::helpers::counted_map::Counted(&$name)
        };
    )* };
}

pub(crate) use maps;

/// Declares a map for each row of [`podwire_common::tables!`].
macro_rules! tables {
    ($($owner:ident {
        $(#[doc = $doc:literal])+
        $name:ident, $field:ident, $variant:ident: $kind:ident<$key:ty, $value:ty>,
        entries $entries:expr, $($sizes_and_shares:tt)*
    })*) => {
        $crate::helpers::maps! { $(
            $(#[doc = $doc])+
            static $name: $crate::helpers::map_type!($kind, $key, $value, $entries) =
                <$crate::helpers::map_type!($kind, $key, $value, $entries)>::new();
        )* }
    };
}

/// Expands to the type of a map of a kind.
macro_rules! map_type {
    (Hash, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::HashMap<$key, $value, { $entries }>
    };
    (LazyHash, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::HashMap<
            $key, $value, { $entries }, { aya_ebpf::bindings::BPF_F_NO_PREALLOC as usize },
        >
    };
    (LruHash, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::LruHashMap<$key, $value, { $entries }>
    };
    (LpmTrie, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::LpmTrie<$key, $value, { $entries }>
    };
    (Array, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::Array<$value, { $entries }>
    };
    (MappedArray, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::Array<$value, { $entries }, { aya_ebpf::bindings::BPF_F_MMAPABLE as usize }>
    };
    (PerCpuArray, $key:ty, $value:ty, $entries:expr) => {
        aya_ebpf::btf_maps::PerCpuArray<$value, { $entries }>
    };
}

pub(crate) use {map_type, tables};

/// Calls `bpf_skb_store_bytes` with a whole value. `offset` counts from the start of the frame.
///
/// # Errors
/// The helper's error code.
#[inline(always)]
pub fn store<T>(ctx: &TcContext, offset: usize, value: &T, flags: u64) -> Result<(), c_long> {
    let result = ctx.store(offset, value, flags);
    count::<{ Helper::SkbStoreBytes as usize }>();
    result
}

/// Calls `bpf_skb_adjust_room`.
///
/// # Errors
/// The helper's error code.
#[inline(always)]
pub fn adjust_room(ctx: &TcContext, bytes: i32, mode: u32, flags: u64) -> Result<(), c_long> {
    let result = ctx.adjust_room(bytes, mode, flags);
    count::<{ Helper::SkbAdjustRoom as usize }>();
    result
}

/// Calls `bpf_l3_csum_replace`.
///
/// # Errors
/// The helper's error code.
#[inline(always)]
pub fn l3_csum_replace(ctx: &TcContext, offset: usize, from: u64, to: u64, size: u64) -> Result<(), c_long> {
    let result = ctx.l3_csum_replace(offset, from, to, size);
    count::<{ Helper::L3CsumReplace as usize }>();
    result
}

/// Calls `bpf_l4_csum_replace`.
///
/// # Errors
/// The helper's error code.
#[inline(always)]
pub fn l4_csum_replace(ctx: &TcContext, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), c_long> {
    let result = ctx.l4_csum_replace(offset, from, to, flags);
    count::<{ Helper::L4CsumReplace as usize }>();
    result
}
