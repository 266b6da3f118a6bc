//! ICMP errors that the programs send themselves (RFC 792, RFC 1191).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Addr, Be16, Mac},
    flow::protocol,
    reason::Drop,
};

use super::{
    Headers, Ipv4, Skb, checksum,
    headers::{ETHERNET_LENGTH, IcmpError},
};

/// RFC 792 asks for this quote: the IPv4 header, here without options, and 8 bytes more.
const QUOTE: usize = 28;
const ICMP: usize = 8 + QUOTE;

/// Turns the packet into the error that answers it. The packet has an IPv4 header without options.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(never)]
pub fn answer(
    ctx: &TcContext,
    headers: &Headers,
    from: &Addr,
    from_mac: &Mac,
    error: IcmpError,
) -> Result<(), Drop> {
    let [kind, code] = error.kind;
    let mut answer = Answer {
        headers: Headers {
            destination_mac: headers.source_mac,
            source_mac: *from_mac,
            ethertype: headers.ethertype,
            ip: Ipv4::new(from.v4(), headers.ip.source, protocol::ICMP, ICMP as u16),
        },
        kind,
        code,
        checksum: Be16::ZERO,
        unused: [0; 2],
        mtu: Be16::new(error.mtu as u16),
        quote: [0; QUOTE],
    };
    ctx.load_into(ETHERNET_LENGTH, &mut answer.quote)?;
    answer.checksum = checksum::finish(checksum::add(0, &raw const answer.kind, ICMP));
    ctx.resize(size_of::<Answer>() as u32)?;
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

const _: () = assert!(size_of::<Answer>() == 70);
