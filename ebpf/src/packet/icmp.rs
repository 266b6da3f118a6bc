//! The ICMP error that a router sends when an IPv4 packet does not fit (RFC 1191).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Addr, Be16, Mac},
    flow::protocol,
    reason::Drop,
};

use super::{Headers, Ipv4, Skb, checksum};
use crate::helpers::bpf_skb_change_tail;

const ETHERNET: usize = 14;
const IP: usize = 20;
/// RFC 792 asks for this quote: the IPv4 header, here without options, and 8 bytes more.
const QUOTE: usize = 28;
const ICMP: usize = 8 + QUOTE;
const LENGTH: usize = ETHERNET + IP + ICMP;
const TTL: u8 = 64;
const DESTINATION_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// Turns the packet into the "fragmentation needed" error that answers it in a router's name. The
/// packet has an IPv4 header without options.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(never)]
pub fn too_big(
    ctx: &TcContext,
    headers: &Headers,
    router: &Addr,
    router_mac: &Mac,
    mtu: u32,
) -> Result<(), Drop> {
    let mut answer = Answer {
        headers: Headers {
            destination_mac: headers.source_mac,
            source_mac: *router_mac,
            ethertype: headers.ethertype,
            ip: Ipv4 {
                version_length: 0x45,
                traffic_class: 0,
                total_length: Be16::new((IP + ICMP) as u16),
                identification: [0; 2],
                fragment: Be16::ZERO,
                ttl: TTL,
                protocol: protocol::ICMP,
                checksum: Be16::ZERO,
                source: router.v4(),
                destination: headers.ip.source,
            },
        },
        kind: DESTINATION_UNREACHABLE,
        code: FRAGMENTATION_NEEDED,
        checksum: Be16::ZERO,
        unused: [0; 2],
        mtu: Be16::new(mtu as u16),
        quote: [0; QUOTE],
    };
    ctx.load_into(ETHERNET as u32, &mut answer.quote)?;
    answer.headers.ip.checksum = checksum::of_ip(&answer.headers.ip);
    answer.checksum = checksum::finish(checksum::add(0, &raw const answer.kind, ICMP));

    // Cut the packet to the length of the answer. A large segment becomes a single packet.
    // SAFETY: the context is valid.
    if unsafe { bpf_skb_change_tail(ctx.skb.skb, LENGTH as u32, 0) } != 0 {
        return Err(Drop::RewriteFailed);
    }
    ctx.store_at(0, &answer)
}

#[repr(C)]
struct Answer {
    headers: Headers,
    kind: u8,
    code: u8,
    checksum: Be16,
    unused: [u8; 2],
    mtu: Be16,
    quote: [u8; QUOTE],
}

const _: () = assert!(size_of::<Answer>() == LENGTH);
