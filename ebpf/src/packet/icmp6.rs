//! ICMPv6 that the programs send themselves: errors (RFC 4443 section 3), and the answer to a
//! solicitation for a pod's gateway (RFC 4861 section 4.4).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Addr, Be16, Mac},
    csum,
    flow::protocol,
    names::GATEWAY6,
    reason::Drop,
};

use super::{
    Headers, Ipv6, Parsed, Skb, checksum,
    headers::{ETHERNET_LENGTH, IcmpError, ethertype},
};

/// Bytes in front of a message.
const HEADERS: u32 = ETHERNET_LENGTH + 40;
/// Bytes of the quoted packet: its header, a fragment header and one more extension header of 8
/// bytes, and the 8 bytes that receivers read of the transport header, with the ports.
const QUOTE: usize = 64;
/// The most bytes in front of the transport header with which the quote has all that receivers read.
pub const LONGEST_QUOTED_HEADERS: u16 = QUOTE as u16 - 8;
/// Hop limit of packets that the programs send themselves.
pub const HOP_LIMIT: u8 = 64;
/// Neighbour discovery has this hop limit, so that no router can forward it (RFC 4861 section 3.1).
pub const ON_LINK_HOP_LIMIT: u8 = 255;
const ADVERTISEMENT: u8 = 136;
/// The sender is a router, answers a solicitation, and replaces what is cached.
const ROUTER_SOLICITED_OVERRIDE: u8 = 0xe0;
const TARGET_LINK_ADDRESS: u8 = 2;

/// What the headers of a message say of its body.
struct Message {
    /// Bytes of the body.
    length: u16,
    hop_limit: u8,
    /// Sum over the body, whose checksum is zero.
    sum: u32,
}

/// Turns the packet into the error that answers it.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
// Body and headers are stored by two functions, one after the other: together they would take too
// much stack.
#[inline(always)]
pub fn answer(
    ctx: &TcContext,
    headers: &Headers<Ipv6>,
    from: &Addr,
    from_mac: &Mac,
    error: IcmpError,
) -> Result<(), Drop> {
    let sum = store_error(ctx, error)?;
    let length = 8 + error.length.min(QUOTE as u16);
    store_headers(ctx, headers, from, from_mac, &Message { length, hop_limit: HOP_LIMIT, sum })?;
    if error.length < QUOTE as u16 { ctx.resize(HEADERS + u32::from(length)) } else { Ok(()) }
}

/// Answers a neighbour solicitation for the pods' gateway.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn advertise_gateway(ctx: &TcContext, packet: &Parsed<Ipv6>, mac: Mac) -> Result<(), Drop> {
    let sum = store_advertisement(ctx, mac)?;
    let length = size_of::<Advertisement>() as u16;
    let message = Message { length, hop_limit: ON_LINK_HOP_LIMIT, sum };
    store_headers(ctx, &packet.headers, &Addr { bytes: GATEWAY6 }, &mac, &message)
}

/// Stores the body of an error. Its quote may end with zeros that the packet does not have: the sum
/// is the same without them.
#[inline(never)]
fn store_error(ctx: &TcContext, error: IcmpError) -> Result<u32, Drop> {
    let [kind, code] = error.kind;
    let mut body = Body { kind, code, checksum: Be16::ZERO, mtu: error.mtu.to_be_bytes(), quote: [0; QUOTE] };
    ctx.resize(HEADERS + size_of::<Body>() as u32)?;
    ctx.load_into(ETHERNET_LENGTH, &mut body.quote)?;
    store_body(ctx, &body)
}

#[inline(never)]
fn store_advertisement(ctx: &TcContext, mac: Mac) -> Result<u32, Drop> {
    let body = Advertisement {
        kind: ADVERTISEMENT,
        code: 0,
        checksum: Be16::ZERO,
        flags: [ROUTER_SOLICITED_OVERRIDE, 0, 0, 0],
        target: GATEWAY6,
        option: TARGET_LINK_ADDRESS,
        option_length: 1,
        mac,
    };
    ctx.resize(HEADERS + size_of::<Advertisement>() as u32)?;
    store_body(ctx, &body)
}

/// Stores the body, and returns the sum over it.
#[inline(always)]
fn store_body<T>(ctx: &TcContext, body: &T) -> Result<u32, Drop> {
    ctx.store_at(HEADERS, body)?;
    Ok(checksum::add(0, (&raw const *body).cast(), size_of::<T>()))
}

/// Stores the headers of a message that answers a packet, and the checksum.
#[inline(never)]
fn store_headers(
    ctx: &TcContext,
    answered: &Headers<Ipv6>,
    from: &Addr,
    from_mac: &Mac,
    message: &Message,
) -> Result<(), Drop> {
    let headers = Headers {
        destination_mac: answered.source_mac,
        source_mac: *from_mac,
        ethertype: Be16::new(ethertype::IPV6),
        ip: Ipv6 {
            version_class_label: [0x60, 0, 0, 0],
            payload_length: Be16::new(message.length),
            next_header: protocol::ICMPV6,
            hop_limit: message.hop_limit,
            source: from.bytes,
            destination: answered.ip.source,
        },
    };
    let addresses = (&raw const headers.ip.source).cast();
    let sum = checksum::add(message.sum, addresses, 2 * size_of::<Addr>());
    // The pseudo header also has the length and the protocol (RFC 8200 section 8.1).
    let words = [csum::fold(sum), message.length.to_be(), u16::from(protocol::ICMPV6).to_be()];
    let checksum = checksum::finish(words.map(u32::from).iter().sum());
    ctx.store_at(0, &headers)?;
    ctx.store_at(HEADERS + 2, &checksum)
}

#[repr(C)]
struct Body {
    kind: u8,
    code: u8,
    checksum: Be16,
    mtu: [u8; 4],
    quote: [u8; QUOTE],
}

#[repr(C)]
struct Advertisement {
    kind: u8,
    code: u8,
    checksum: Be16,
    flags: [u8; 4],
    target: [u8; 16],
    option: u8,
    option_length: u8,
    mac: Mac,
}

const _: () = assert!(size_of::<Body>() == 72);
const _: () = assert!(size_of::<Advertisement>() == 32);
