//! The socket call that a cgroup program sees: its address and its socket.

use aya_ebpf::{bindings::bpf_sock_addr, programs::SockAddrContext};
use podwire_common::{
    addr::{Addr, Be16},
    flow::protocol,
};

use crate::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};

/// `SOCK_STREAM` and `SOCK_DGRAM` of `linux/net.h`.
const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
/// First byte of 127.0.0.0/8 (RFC 1122 section 3.2.1.3).
const LOOPBACK: u8 = 127;
/// `::1` (RFC 4291 section 2.5.3).
pub const LOOPBACK6: Addr = Addr::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])]);

/// A call with an address: the process has passed it, or the kernel is about to return it.
pub trait SocketCall {
    /// Returns the kernel's context.
    fn context(&self) -> *mut bpf_sock_addr;

    /// Returns the address in the call.
    fn address(&self) -> Addr;

    /// Replaces the address in the call by another one of its family.
    fn set_address(&self, address: &Addr);

    /// Returns the address to which the socket is bound, or the unspecified one.
    fn bound_address(&self) -> Addr;

    /// Returns the address to which the socket is connected, or the unspecified one.
    fn peer_address(&self) -> Addr;

    /// Returns the port in the call.
    #[inline(always)]
    fn port(&self) -> Be16 {
        // SAFETY: the context is valid. The port is in the first two bytes of the word, in network
        // order.
        let word = unsafe { (*self.context()).user_port };
        Be16 { bytes: (word as u16).to_ne_bytes() }
    }

    /// Replaces the port in the call.
    #[inline(always)]
    fn set_port(&self, port: Be16) {
        // SAFETY: the context is valid; the kernel takes only a whole word.
        unsafe { (*self.context()).user_port = u32::from(port.be16()) };
    }

    /// Returns the socket's IP protocol number if it is TCP or UDP.
    #[inline(always)]
    fn protocol(&self) -> Option<u8> {
        // SAFETY: the context is valid.
        let (kind, number) = unsafe { ((*self.context()).type_, (*self.context()).protocol) };
        protocol_of(kind, number)
    }

    /// Returns the kernel's number of the socket.
    #[inline(always)]
    fn socket_cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.context().cast()) }
    }

    /// Returns the kernel's number of the socket's network namespace.
    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_netns_cookie(self.context().cast()) }
    }

    /// Sets the error that the process gets if the program refuses the call.
    #[inline(always)]
    fn set_error(&self, number: i32) {
        // SAFETY: a helper on integers.
        unsafe { bpf_set_retval(-number) };
    }

    /// Returns whether the socket is connected to an address and port.
    #[inline(always)]
    fn is_connected_with(&self, address: &Addr, port: Be16) -> bool {
        // SAFETY: the context is valid; the verifier knows that the pointer is a socket's.
        let peer_port = unsafe { (*(*self.context()).__bindgen_anon_1.sk).dst_port };
        peer_port == port.be16() && self.peer_address() == *address
    }
}

/// A call that an IPv4 program sees.
pub struct Ipv4Call(pub SockAddrContext);

impl SocketCall for Ipv4Call {
    #[inline(always)]
    fn context(&self) -> *mut bpf_sock_addr {
        self.0.sock_addr
    }

    #[inline(always)]
    fn address(&self) -> Addr {
        // SAFETY: the context is valid.
        Addr::from_v4(unsafe { (*self.context()).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn set_address(&self, address: &Addr) {
        // SAFETY: the context is valid.
        unsafe { (*self.context()).user_ip4 = address.v4_be32() };
    }

    #[inline(always)]
    fn bound_address(&self) -> Addr {
        // SAFETY: the context is valid; the verifier knows that the pointer is a socket's.
        Addr::from_v4(unsafe { (*(*self.context()).__bindgen_anon_1.sk).src_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn peer_address(&self) -> Addr {
        // SAFETY: the context is valid; the verifier knows that the pointer is a socket's.
        Addr::from_v4(unsafe { (*(*self.context()).__bindgen_anon_1.sk).dst_ip4 }.to_ne_bytes())
    }
}

/// A call that an IPv6 program sees. On a socket that takes IPv4 as well, an IPv4 address is
/// v4-mapped.
pub struct Ipv6Call(pub SockAddrContext);

impl SocketCall for Ipv6Call {
    #[inline(always)]
    fn context(&self) -> *mut bpf_sock_addr {
        self.0.sock_addr
    }

    #[inline(always)]
    fn address(&self) -> Addr {
        // SAFETY: the context is valid. Word by word: the verifier allows no larger read.
        let [a, b, c, d] = unsafe { (*self.context()).user_ip6 };
        Addr::from_words([a, b, c, d])
    }

    #[inline(always)]
    fn set_address(&self, address: &Addr) {
        let [a, b, c, d] = address.words();
        // SAFETY: the context is valid.
        unsafe { (*self.context()).user_ip6 = [a, b, c, d] };
    }

    #[inline(always)]
    fn bound_address(&self) -> Addr {
        // SAFETY: the context is valid; the verifier knows that the pointer is a socket's.
        let [a, b, c, d] = unsafe { (*(*self.context()).__bindgen_anon_1.sk).src_ip6 };
        Addr::from_words([a, b, c, d])
    }

    #[inline(always)]
    fn peer_address(&self) -> Addr {
        // SAFETY: the context is valid; the verifier knows that the pointer is a socket's.
        let [a, b, c, d] = unsafe { (*(*self.context()).__bindgen_anon_1.sk).dst_ip6 };
        Addr::from_words([a, b, c, d])
    }
}

/// Returns the IP protocol number of a socket of TCP or UDP, by its type and the kernel's number of
/// the protocol.
#[inline(always)]
pub(super) fn protocol_of(kind: u32, number: u32) -> Option<u8> {
    const TCP: u32 = protocol::TCP as u32;
    const UDP: u32 = protocol::UDP as u32;
    match (kind, number) {
        (STREAM, TCP) => Some(protocol::TCP),
        (DATAGRAM, UDP) => Some(protocol::UDP),
        _ => None,
    }
}

/// Returns whether an address is one of 127.0.0.0/8, or `::1`.
#[inline(always)]
pub fn is_loopback(address: &Addr) -> bool {
    address.is_v4() && address.v4()[0] == LOOPBACK || *address == LOOPBACK6
}
