//! Kernel helpers that count their calls.
#![expect(unsafe_code, reason = "helpers take raw pointers")]

use aya_ebpf::{
    bindings::{
        __be32, __s64, __sk_buff, __u32, __u64, __wsum, bpf_redir_neigh, bpf_sock, bpf_sock_tuple,
        bpf_tunnel_key,
    },
    cty::{c_int, c_long, c_void},
};
use podwire_common::helper::{HELPER_SLOTS, Helper};

/// The number of calls of each helper. This is a plain array, not a per-CPU map: adding to it needs
/// no stack, and the programs have none left. It also needs no branch that the verifier would
/// follow both ways.
#[cfg_attr(
    not(target_arch = "bpf"),
    expect(dead_code, reason = "clippy reads it as the host would compile it")
)]
static mut HELPER_CALLS: [u64; HELPER_SLOTS] = [0; HELPER_SLOTS];

/// Counts a call that has just returned: then the argument registers are free. With assembly, the
/// compiler cannot keep the array's address in a register from one call to the next. The programs
/// need those registers.
#[inline(always)]
pub fn add<const HELPER: usize>() {
    const { assert!(HELPER < HELPER_SLOTS) };
    #[cfg(target_arch = "bpf")]
    // SAFETY: the slot is within the array, and the assembly touches nothing else of the program.
    unsafe {
        core::arch::asm!(
            "r1 = {calls} ll",
            "r2 = 1",
            "lock *(u64 *)(r1 + {slot}) += r2",
            calls = sym HELPER_CALLS,
            slot = const HELPER * size_of::<u64>(),
            out("r1") _,
            out("r2") _,
        );
    }
}

macro_rules! helpers {
    ($($helper:ident: fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => { $(
        /// Calls the kernel's helper of this name, and counts the call.
        ///
        /// # Safety
        /// Pointers are valid for what the helper does with them.
        #[inline(always)]
        pub unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: the caller keeps this function's contract.
            let result = unsafe { aya_ebpf::helpers::generated::$name($($argument),*) };
            add::<{ Helper::$helper as usize }>();
            result
        }
    )* };
}

helpers! {
    KtimeGetNs: fn bpf_ktime_get_ns() -> __u64;
    Jiffies64: fn bpf_jiffies64() -> __u64;
    GetPrandomU32: fn bpf_get_prandom_u32() -> __u32;
    SkbLoadBytes: fn bpf_skb_load_bytes(skb: *const c_void, offset: __u32, to: *mut c_void, len: __u32) -> c_long;
    SkbChangeType: fn bpf_skb_change_type(skb: *mut __sk_buff, kind: __u32) -> c_long;
    SkbChangeHead: fn bpf_skb_change_head(skb: *mut __sk_buff, len: __u32, flags: __u64) -> c_long;
    SkbChangeTail: fn bpf_skb_change_tail(skb: *mut __sk_buff, len: __u32, flags: __u64) -> c_long;
    SkbGetTunnelKey: fn bpf_skb_get_tunnel_key(skb: *mut __sk_buff, key: *mut bpf_tunnel_key, size: __u32, flags: __u64) -> c_long;
    SkbSetTunnelKey: fn bpf_skb_set_tunnel_key(skb: *mut __sk_buff, key: *mut bpf_tunnel_key, size: __u32, flags: __u64) -> c_long;
    CsumDiff: fn bpf_csum_diff(from: *mut __be32, from_size: __u32, to: *mut __be32, to_size: __u32, seed: __wsum) -> __s64;
    FibLookup: fn bpf_fib_lookup(ctx: *mut c_void, params: *mut aya_ebpf::bindings::bpf_fib_lookup, plen: c_int, flags: __u32) -> c_long;
    Redirect: fn bpf_redirect(ifindex: __u32, flags: __u64) -> c_long;
    RedirectNeigh: fn bpf_redirect_neigh(ifindex: __u32, params: *mut bpf_redir_neigh, plen: c_int, flags: __u64) -> c_long;
    RedirectPeer: fn bpf_redirect_peer(ifindex: __u32, flags: __u64) -> c_long;
    SkcLookupTcp: fn bpf_skc_lookup_tcp(ctx: *mut c_void, tuple: *mut bpf_sock_tuple, size: __u32, netns: __u64, flags: __u64) -> *mut bpf_sock;
    SkLookupUdp: fn bpf_sk_lookup_udp(ctx: *mut c_void, tuple: *mut bpf_sock_tuple, size: __u32, netns: __u64, flags: __u64) -> *mut bpf_sock;
    SkRelease: fn bpf_sk_release(sock: *mut c_void) -> c_long;
    GetSocketCookie: fn bpf_get_socket_cookie(ctx: *mut c_void) -> __u64;
    GetNetnsCookie: fn bpf_get_netns_cookie(ctx: *mut c_void) -> __u64;
    SetRetval: fn bpf_set_retval(code: c_int) -> c_int;
    ProbeReadKernel: fn bpf_probe_read_kernel(to: *mut c_void, size: __u32, from: *const c_void) -> c_long;
}
