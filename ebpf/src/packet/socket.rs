//! Lookups of this node's sockets for packets.

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    programs::TcContext,
};
use podwire_common::{
    abi::{FAMILY_IPV4, Flow, Translation},
    addr::Addr,
    flow::protocol,
};

use super::Ip;
use crate::helpers::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};

/// The network namespace of the hook.
const THIS_NAMESPACE: u64 = u64::MAX;

/// Returns whether a socket of this node would receive the replies to a translated TCP or UDP flow.
/// That is a connection, even one that has just begun or just ended, or a listener on the port.
#[inline(never)]
pub fn has_socket<I: Ip>(ctx: &TcContext, to: &Translation, protocol_number: u8) -> bool {
    // SAFETY: all fields are integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let length = match I::FAMILY {
        FAMILY_IPV4 => {
            tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: to.destination.v4_be32(),
                daddr: to.source.v4_be32(),
                sport: to.destination_port.be16(),
                dport: to.source_port.be16(),
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
        }
        _ => {
            tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: to.destination.words(),
                daddr: to.source.words(),
                sport: to.destination_port.be16(),
                dport: to.source_port.be16(),
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
        }
    } as u32;
    let skb = ctx.skb.skb.cast();
    // SAFETY: the context is valid, and the length is the filled member's. The verifier ensures
    // that a found socket is released.
    unsafe {
        let socket = match protocol_number {
            protocol::TCP => bpf_skc_lookup_tcp(skb, &raw mut tuple, length, THIS_NAMESPACE, 0),
            protocol::UDP => bpf_sk_lookup_udp(skb, &raw mut tuple, length, THIS_NAMESPACE, 0),
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
    }
    true
}

/// Returns whether the packet comes from a socket that [`has_socket`] finds for its replies. That
/// is not the case if
///
/// - the packet was forwarded,
/// - the host's rules have translated it,
/// - the kernel sent it by itself,
/// - the socket is bound to a device: the lookup is for the hook's link, which may be another.
#[inline(always)]
pub fn belongs_to_socket<I: Ip>(ctx: &TcContext, flow: &Flow) -> bool {
    // SAFETY: the context is valid. The verifier knows that the pointer is a socket's, or null.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        if (*socket).src_port != u32::from(flow.source_port.get()) {
            return false;
        }
        if (*socket).bound_dev_if != 0 {
            return false;
        }
        if !is_bound_to::<I>(socket, &flow.source) {
            return false;
        }
        // An unconnected socket is found by its own port alone.
        let to = (*socket).dst_port;
        to == 0 || (to == flow.destination_port.be16() && is_connected_to::<I>(socket, &flow.destination))
    }
}

/// Returns whether a socket has an address, or none.
///
/// # Safety
/// The verifier knows that the pointer is a socket's.
#[inline(always)]
unsafe fn is_bound_to<I: Ip>(socket: *const bpf_sock, address: &Addr) -> bool {
    // SAFETY: the caller keeps this function's contract.
    unsafe {
        match I::FAMILY {
            FAMILY_IPV4 => {
                let own = (*socket).src_ip4;
                own == 0 || own == address.v4_be32()
            }
            _ => {
                let own = words((&raw const (*socket).src_ip6).cast());
                own == [0; 4] || own == address.words()
            }
        }
    }
}

/// Returns whether a socket is connected to an address.
///
/// # Safety
/// The verifier knows that the pointer is a socket's.
#[inline(always)]
unsafe fn is_connected_to<I: Ip>(socket: *const bpf_sock, address: &Addr) -> bool {
    // SAFETY: the caller keeps this function's contract.
    unsafe {
        match I::FAMILY {
            FAMILY_IPV4 => (*socket).dst_ip4 == address.v4_be32(),
            _ => words((&raw const (*socket).dst_ip6).cast()) == address.words(),
        }
    }
}

/// Reads an IPv6 address word by word: the verifier allows no larger read from a socket.
///
/// # Safety
/// As [`is_bound_to`], and the pointer is one to an address of the socket.
#[inline(always)]
unsafe fn words(address: *const u32) -> [u32; 4] {
    // SAFETY: the caller keeps this function's contract. Volatile: the compiler would join the reads.
    unsafe {
        [
            address.read_volatile(),
            address.add(1).read_volatile(),
            address.add(2).read_volatile(),
            address.add(3).read_volatile(),
        ]
    }
}
