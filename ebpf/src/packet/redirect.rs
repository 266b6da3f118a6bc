//! Route lookups and redirects.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_INGRESS, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
        BPF_FIB_LOOKUP_OUTPUT, BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup,
        bpf_redir_neigh,
    },
    programs::TcContext,
};
use podwire_common::{
    abi::{FAMILY_IPV4, FAMILY_IPV6, FAMILY_UNKNOWN, NextHop},
    addr::{Addr, Mac},
};

use super::{Ip, Skb, ethertype};
use crate::helpers::{self, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};

const AF_INET: u8 = FAMILY_IPV4 as u8;
const AF_INET6: u8 = FAMILY_IPV6 as u8;

// The kernel takes a next hop in this layout.
const _: () = assert!(size_of::<NextHop>() == size_of::<bpf_redir_neigh>());

/// A question to the kernel's routing table, and its answer.
pub struct Way {
    /// The link to leave by; in the answer, the one that the route names.
    pub ifindex: u32,
    /// Bytes of the IP packet; 0: not asked. This lookup knows path MTU exceptions, but a redirect
    /// does not. In the answer: the largest IP packet that the path takes.
    pub length: u32,
    /// Source address.
    pub source: Addr,
    /// Destination address, of the same family.
    pub destination: Addr,
    /// In the answer: the router, or the destination itself if there is no router on the way.
    pub next_hop: NextHop,
    /// In the answer: the next hop's link address, or zeros if the kernel does not know it.
    pub next_hop_mac: Mac,
}

/// The kernel's answer to a [`Way`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// There is a route.
    Found,
    /// The path takes no more than [`Way::length`] bytes of IP packet.
    TooBig,
    /// Anything else: no route, or forwarding is off.
    Unknown,
}

impl Way {
    /// Prepares a question to the kernel.
    #[inline(always)]
    pub fn new(ifindex: u32, source: Addr, destination: Addr, length: u32) -> Self {
        Self {
            ifindex,
            length,
            source,
            destination,
            next_hop: NextHop::UNKNOWN,
            next_hop_mac: Mac::default(),
        }
    }

    /// Returns a route that was found before.
    #[inline(always)]
    pub fn known(ifindex: u32, next_hop: NextHop, source: Addr, destination: Addr) -> Self {
        Self { ifindex, length: 0, source, destination, next_hop, next_hop_mac: Mac::default() }
    }

    /// Asks the kernel for the route out by this link. `I`: the addresses' family.
    #[inline(always)]
    pub fn look_up<I: Ip>(&mut self, ctx: &TcContext) -> Lookup {
        self.ask::<I>(ctx, BPF_FIB_LOOKUP_OUTPUT)
    }

    /// Asks the kernel for the route by any link, as for a packet that came in by this link.
    #[inline(always)]
    pub fn look_up_any<I: Ip>(&mut self, ctx: &TcContext) -> Lookup {
        self.ask::<I>(ctx, 0)
    }

    // One function for each family: together their values would take more stack.
    #[inline(always)]
    fn ask<I: Ip>(&mut self, ctx: &TcContext, flags: u32) -> Lookup {
        if I::ETHERTYPE == ethertype::IPV4 { self.ask4(ctx, flags) } else { self.ask6(ctx, flags) }
    }

    #[inline(never)]
    fn ask4(&mut self, ctx: &TcContext, flags: u32) -> Lookup {
        // SAFETY: all fields are integers or unions of them.
        let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = self.source.v4_be32();
        query.__bindgen_anon_4.ipv4_dst = self.destination.v4_be32();
        self.answer(ctx, &mut query, flags)
    }

    #[inline(never)]
    fn ask6(&mut self, ctx: &TcContext, flags: u32) -> Lookup {
        // SAFETY: all fields are integers or unions of them.
        let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = self.source.words();
        query.__bindgen_anon_4.ipv6_dst = self.destination.words();
        self.answer(ctx, &mut query, flags)
    }

    #[inline(always)]
    fn answer(&mut self, ctx: &TcContext, query: &mut bpf_fib_lookup, flags: u32) -> Lookup {
        query.ifindex = self.ifindex;
        query.__bindgen_anon_1.tot_len = self.length as u16;
        // SAFETY: the context is valid, the size is the query's.
        let code = unsafe {
            helpers::bpf_fib_lookup(ctx.as_ptr(), &raw mut *query, size_of::<bpf_fib_lookup>() as i32, flags)
        };
        match code as u32 {
            // NO_NEIGH is a route too: the kernel resolves the link address later.
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
                self.ifindex = query.ifindex;
                // SAFETY: the union has only integers. If a length was asked for, the helper wrote
                // the path's MTU there.
                self.length = unsafe { query.__bindgen_anon_1.mtu_result }.into();
                self.next_hop.family = query.family.into();
                // An IPv4 route may lead by an IPv6 router.
                // SAFETY: the helper wrote the next hop, of either family, into the members of this
                // union.
                self.next_hop.address = unsafe { query.__bindgen_anon_4.ipv6_dst };
                self.next_hop_mac = Mac { bytes: query.dmac };
                Lookup::Found
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                // SAFETY: the helper wrote the result into this member.
                self.length = unsafe { query.__bindgen_anon_1.mtu_result }.into();
                Lookup::TooBig
            }
            _ => Lookup::Unknown,
        }
    }

    /// Sends the packet along this route.
    #[inline(always)]
    pub fn leave(&self, ctx: &TcContext) -> i32 {
        leave(ctx, self.ifindex, &self.next_hop)
    }
}

/// Sends the packet out of an uplink. The kernel resolves the next hop and writes the link header.
/// So the kernel uses its neighbour entry, and asks for the neighbour again when the entry is old.
#[inline(always)]
pub fn leave(ctx: &TcContext, uplink: u32, next_hop: &NextHop) -> i32 {
    ctx.set_ready_to_leave();
    if next_hop.family == FAMILY_UNKNOWN {
        // SAFETY: without parameters the pointer may be null and the length zero.
        return unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) as i32 };
    }
    let parameters = core::ptr::from_ref(next_hop).cast::<bpf_redir_neigh>().cast_mut();
    // SAFETY: the kernel reads the parameters, which have this size.
    unsafe { bpf_redirect_neigh(uplink, parameters, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// Returns the source that the kernel's routes choose for a destination by the hook's link: the
/// route's source, or the link's address that fits the next hop. Returns `None` if the kernel
/// cannot say (before Linux 6.7) or has no route by that link.
#[inline(never)]
pub fn source_towards<I: Ip>(ctx: &TcContext, destination: &Addr) -> Option<Addr> {
    // SAFETY: all fields are integers or unions of them.
    let mut query: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    query.family = I::FAMILY as u8;
    query.ifindex = ctx.ifindex();
    match I::FAMILY {
        FAMILY_IPV4 => query.__bindgen_anon_4.ipv4_dst = destination.v4_be32(),
        _ => query.__bindgen_anon_4.ipv6_dst = destination.words(),
    }
    // SAFETY: the context is valid, the size is the query's.
    let code = unsafe {
        helpers::bpf_fib_lookup(
            ctx.as_ptr(),
            &raw mut query,
            size_of::<bpf_fib_lookup>() as i32,
            BPF_FIB_LOOKUP_OUTPUT | BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC,
        )
    };
    if code as u32 != BPF_FIB_LKUP_RET_SUCCESS {
        return None;
    }
    if I::FAMILY == FAMILY_IPV6 {
        // The kernel prefers IPv6 routes by the link, but takes others if there are none: for a packet
        // that a firewall mark sent out of this link, the route that others take.
        if query.ifindex != ctx.ifindex() {
            return None;
        }
        // SAFETY: the helper wrote the source into this member.
        let source = Addr::from_words(unsafe { query.__bindgen_anon_3.ipv6_src });
        return (source != Addr::UNSPECIFIED).then_some(source);
    }
    // SAFETY: the helper wrote the source into this member.
    let source = unsafe { query.__bindgen_anon_3.ipv4_src };
    (source != 0).then(|| Addr::from_v4(source.to_ne_bytes()))
}

/// Sends the packet out of a link. Its link header is complete.
#[inline(always)]
pub fn redirect(ifindex: u32) -> i32 {
    // SAFETY: a helper on integers.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Gives the packet to the host stack, as if it had just arrived by a link.
#[inline(always)]
pub fn redirect_into_stack(ifindex: u32) -> i32 {
    // SAFETY: a helper on integers.
    unsafe { bpf_redirect(ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Sends the packet into the other end of a veth pair, as if it had just arrived there.
#[inline(always)]
pub fn redirect_peer(ifindex: u32) -> i32 {
    // SAFETY: a helper on integers.
    unsafe { bpf_redirect_peer(ifindex, 0) as i32 }
}
