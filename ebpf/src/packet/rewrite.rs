//! Changes to addresses, ports and TTL of a packet, with every checksum that covers them.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    programs::TcContext,
};
use podwire_common::{
    abi::{Macs, Translation},
    addr::{Be16, Mac, Quad},
    csum,
    flow::protocol,
    reason::Drop,
};

use super::{Fragment, Headers, Ip, Ipv6, Parsed, Skb, quote};
use crate::{global::global, helpers};

const IP: u32 = 14;
const TTL: u32 = IP + 8;
/// Offset of the identifier in an ICMP echo, from the start of the ICMP header.
const IDENTIFIER: u32 = 4;

/// A frame's link header, as on the wire.
#[repr(C)]
struct LinkHeader {
    destination_mac: Mac,
    source_mac: Mac,
    ethertype: Be16,
}

/// Sets both link addresses.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn set_macs(ctx: &TcContext, macs: Macs) -> Result<(), Drop> {
    ctx.store_at(0, &macs)
}

/// Returns the current IP header without its addresses.
///
/// # Errors
/// [`Drop::Truncated`].
#[inline(always)]
pub fn fixed_part<I: Ip>(ctx: &TcContext) -> Result<I::FixedPart, Drop> {
    ctx.load_at(IP)
}

/// Writes the IP header without its addresses.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn set_fixed_part<I: Ip>(ctx: &TcContext, header: &I::FixedPart) -> Result<(), Drop> {
    ctx.store_at(IP, header)
}

/// Decrements the TTL, as a router does. The caller has checked that it is above 1.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn decrement_ttl<I: Ip>(ctx: &TcContext, headers: &Headers<I>, base: u32) -> Result<(), Drop> {
    store_in_header::<I, _>(ctx, base + IP + I::HOP, &headers.ip.hop())
}

/// Gives a plain TCP or UDP packet another source, and decrements its TTL.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn readdress_source(ctx: &TcContext, packet: &mut Parsed, source: Quad, port: Be16) -> Result<(), Drop> {
    let old = packet.headers.ip.source;
    replace_in_transport(ctx, packet, old, source)?;
    translate_port(ctx, packet, 0, packet.flow.source_port, port)?;
    let ip = &mut packet.headers.ip;
    ip.decrement_ttl();
    ip.source = source.bytes;
    ip.replace_address_in_checksum(old, source.bytes);
    let ([sum, sum2], [a, b, c, d]) = (ip.checksum.bytes, ip.source);
    ctx.store_at(TTL, &[ip.ttl, ip.protocol, sum, sum2, a, b, c, d])
}

/// Gives a plain TCP or UDP packet another destination, decrements its TTL, and writes the link
/// addresses of its headers.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn readdress_destination(
    ctx: &TcContext,
    packet: &mut Parsed,
    destination: Quad,
    port: Be16,
) -> Result<(), Drop> {
    let old = packet.headers.ip.destination;
    replace_in_transport(ctx, packet, old, destination)?;
    translate_port(ctx, packet, 2, packet.flow.destination_port, port)?;
    let ip = &mut packet.headers.ip;
    ip.decrement_ttl();
    ip.destination = destination.bytes;
    ip.replace_address_in_checksum(old, destination.bytes);
    ctx.store_at(0, &packet.headers)
}

/// Replaces an IPv6 address in the transport checksum.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub(super) fn readdress_transport(
    ctx: &TcContext,
    packet: &Parsed<Ipv6>,
    (old, new): (&[u8; 16], &[u8; 16]),
) -> Result<(), Drop> {
    match transport_checksum(packet) {
        Some(checksum) => replace_in_pseudo_header(ctx, checksum, Ipv6::change(old, new)),
        None => Ok(()),
    }
}

/// Updates the transport checksum of a plain TCP or UDP packet for other ports and for an address.
/// `change`: see [`Ip::change`].
#[inline(always)]
pub(super) fn update_transport<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    change: (u64, u64, u32),
    ports: [Be16; 2],
) -> Result<(), Drop> {
    let Some(checksum) = transport_checksum(packet) else {
        return Ok(());
    };
    replace_in_pseudo_header(ctx, checksum, change)?;
    replace_ports(ctx, checksum, packet.flow.ports(), ports)
}

/// The front of a frame up to the ports, which follow the IP header at once.
#[repr(C)]
struct Front {
    headers: Headers,
    ports: [Be16; 2],
}

// No padding: it would be stored too.
const _: () = assert!(size_of::<Front>() == 38);

/// Stores the headers and the ports of a plain packet in a frame that starts at 0.
#[inline(always)]
pub(super) fn store_front(ctx: &TcContext, packet: &Parsed, ports: [Be16; 2]) -> Result<(), Drop> {
    ctx.store_at(0, &Front { headers: packet.headers, ports })
}

/// Does the same as [`store_front`] for IPv6: see [`store_in_parts`].
#[inline(always)]
pub(super) fn store_front6(ctx: &TcContext, packet: &Parsed<Ipv6>, ports: [Be16; 2]) -> Result<(), Drop> {
    store_in_parts(ctx, &packet.headers)?;
    ctx.store_at(packet.transport_offset(), &ports)
}

/// Stores the headers of a frame that starts at 0: link header and IP header apart. A NIC's sum
/// over the packet begins behind the link header: see `store_in_header`.
///
/// # Errors
/// [`Drop::RewriteFailed`].
// Not inlined: it is called for IPv6 only, and must not change the code for IPv4.
#[inline(never)]
pub fn store_in_parts<I: Ip>(ctx: &TcContext, headers: &Headers<I>) -> Result<(), Drop> {
    let &Headers { destination_mac, source_mac, ethertype, .. } = headers;
    ctx.store_at(0, &LinkHeader { destination_mac, source_mac, ethertype })?;
    store_in_header::<I, _>(ctx, IP, &headers.ip)
}

/// Replaces an IPv4 address in the transport checksum, which covers the pseudo header.
#[inline(always)]
fn replace_in_transport(ctx: &TcContext, packet: &Parsed, old: [u8; 4], address: Quad) -> Result<(), Drop> {
    let Some((checksum_at, flags)) = transport_checksum(packet) else {
        return Ok(());
    };
    let (from, to) = (u32::from_ne_bytes(old).into(), address.be32().into());
    replace_l4(ctx, checksum_at, from, to, flags | BPF_F_PSEUDO_HDR | 4)
}

/// Rewrites a packet's flow: addresses, and ports or ICMP identifier if the packet carries them. In
/// an ICMP error it rewrites the quoted packet. Of the error's own addresses, it rewrites those
/// that are the flow's.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn translate<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    I::translate(ctx, packet, to)
}

/// Does the same as [`translate`], and decrements the TTL. The caller has checked that it is above 1.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn forward<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    I::forward(ctx, packet, to)
}

/// Does the same as [`translate`] for IPv4.
#[inline(always)]
pub(super) fn translate4(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    match podwire_translate(ctx.skb.skb, packet, to) {
        DONE => Ok(()),
        _ => Err(Drop::RewriteFailed),
    }
}

/// Does the same as [`forward`] for IPv4.
#[inline(always)]
pub(super) fn forward4(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    match podwire_forward(ctx.skb.skb, packet, to) {
        DONE => Ok(()),
        _ => Err(Drop::RewriteFailed),
    }
}

/// Does the same as [`translate`] for IPv6.
#[inline(always)]
pub(super) fn translate6(ctx: &TcContext, packet: &Parsed<Ipv6>, to: &Translation) -> Result<(), Drop> {
    match podwire_translate6(ctx.skb.skb, packet, to) {
        DONE => Ok(()),
        _ => Err(Drop::RewriteFailed),
    }
}

const DONE: i32 = 0;
const FAILED: i32 = 1;

global! {
    fn podwire_translate(ctx, packet: ref Parsed, to: ref Translation) -> i32, or FAILED {
        if translate_here(ctx, packet, to).is_ok() { DONE } else { FAILED }
    }
}

global! {
    fn podwire_forward(ctx, packet: ref Parsed, to: ref Translation) -> i32, or FAILED {
        if forward_here(ctx, packet, to).is_ok() { DONE } else { FAILED }
    }
}

global! {
    fn podwire_translate6(ctx, packet: ref Parsed<Ipv6>, to: ref Translation) -> i32, or FAILED {
        let outcome = match packet.is_error {
            true => quote::translate_quote(ctx, packet, to).and_then(|()| translate_own6(ctx, packet, to)),
            false => translate_ends6(ctx, packet, to),
        };
        if outcome.is_ok() { DONE } else { FAILED }
    }
}

// Not inlined, as the next one: their addresses would take stack beside the translation of a quote.
#[inline(never)]
fn translate_own6(ctx: &TcContext, packet: &Parsed<Ipv6>, to: &Translation) -> Result<(), Drop> {
    quote::translate_own(ctx, packet, to)
}

#[inline(never)]
fn translate_ends6(ctx: &TcContext, packet: &Parsed<Ipv6>, to: &Translation) -> Result<(), Drop> {
    translate_ends(ctx, packet, to)
}

#[inline(always)]
fn translate_here(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    if packet.is_error {
        return quote::translate(ctx, packet, to);
    }
    if packet.is_whole() {
        let ip = &packet.headers.ip;
        return translate_whole(ctx, packet, to, (ip.ttl, ip.checksum));
    }
    translate_ends(ctx, packet, to)
}

#[inline(always)]
fn forward_here(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    if packet.is_whole() {
        return translate_whole(ctx, packet, to, packet.headers.ip.after_hop());
    }
    decrement_ttl(ctx, &packet.headers, 0)?;
    translate_here(ctx, packet, to)
}

/// Translates all ends of a whole packet of TCP or UDP with one store. `hop`: TTL and header checksum
/// with which the packet goes on.
#[inline(never)]
fn translate_whole(
    ctx: &TcContext,
    packet: &Parsed,
    to: &Translation,
    (ttl, checksum): (u8, Be16),
) -> Result<(), Drop> {
    let Some((checksum_at, flags)) = transport_checksum(packet) else {
        return Ok(());
    };
    let ip = &packet.headers.ip;
    let (old, ends) = ([ip.source, ip.destination], [to.source.v4(), to.destination.v4()]);
    let change = csum::change(old, ends);
    if ends != old {
        // With size 0, the kernel takes the change of a sum.
        replace_l4(ctx, checksum_at, 0, change.into(), flags | BPF_F_PSEUDO_HDR)?;
    }
    let (old, ports) = (packet.flow.ports(), [to.source_port, to.destination_port]);
    if ports != old {
        replace_ports(ctx, (checksum_at, flags), old, ports)?;
    }
    let [a, b] = csum::changed(checksum.be16(), change).to_ne_bytes();
    let ([source, destination], hop) = (ends, [ttl, ip.protocol, a, b]);
    ctx.store_at(packet.base.wrapping_add(TTL), &[hop, source, destination, word(ports)])
}

/// Updates a transport checksum after a change of both ports. `checksum`: its place and flags.
#[inline(always)]
fn replace_ports(
    ctx: &TcContext,
    (checksum_at, flags): (u32, u32),
    old: [Be16; 2],
    ports: [Be16; 2],
) -> Result<(), Drop> {
    let sum = |ports| u32::from_ne_bytes(word(ports)).into();
    replace_l4(ctx, checksum_at, sum(old), sum(ports), flags | 4)
}

/// Returns two ports as they follow each other in a packet.
#[inline(always)]
fn word([a, b]: [Be16; 2]) -> [u8; 4] {
    let ([a, b], [c, d]) = (a.bytes, b.bytes);
    [a, b, c, d]
}

#[inline(always)]
fn translate_ends<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    translate_end(ctx, packet, I::SOURCE, packet.headers.ip.raw_source(), I::raw(&to.source))?;
    translate_end(ctx, packet, I::DESTINATION, packet.headers.ip.raw_destination(), I::raw(&to.destination))?;
    translate_port(ctx, packet, 0, packet.flow.source_port, to.source_port)?;
    translate_port(ctx, packet, 2, packet.flow.destination_port, to.destination_port)
}

/// Translates an address. `place`: its offset in the IP header.
#[inline(always)]
fn translate_end<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    place: u32,
    old: &I::Address,
    address: &I::Address,
) -> Result<(), Drop> {
    if old == address {
        return Ok(());
    }
    let change = I::change(old, address);
    if (I::ICMP_COVERS_ADDRESSES || packet.flow.protocol != I::ICMP)
        && let Some(checksum) = transport_checksum(packet)
    {
        replace_in_pseudo_header(ctx, checksum, change)?;
    }
    replace_address::<I>(ctx, packet.base.wrapping_add(IP), place, change, address)
}

/// Updates a transport checksum after a change of the pseudo header. `checksum`: its place and
/// flags. `change`: see [`Ip::change`].
#[inline(always)]
pub(super) fn replace_in_pseudo_header(
    ctx: &TcContext,
    (checksum_at, flags): (u32, u32),
    (from, to, size): (u64, u64, u32),
) -> Result<(), Drop> {
    replace_l4(ctx, checksum_at, from, to, flags | BPF_F_PSEUDO_HDR | size)
}

/// Replaces an address of the IP header at `header`, and updates the header's own checksum.
/// `change`: see [`Ip::change`].
#[inline(always)]
pub(super) fn replace_address<I: Ip>(
    ctx: &TcContext,
    header: u32,
    place: u32,
    (from, to, size): (u64, u64, u32),
    new: &I::Address,
) -> Result<(), Drop> {
    if let Some(at) = I::CHECKSUM {
        helpers::l3_csum_replace(ctx, header.wrapping_add(at) as usize, from, to, size.into())
            .map_err(|_| Drop::RewriteFailed)?;
    }
    store_in_header::<I, _>(ctx, header.wrapping_add(place), new)
}

/// Stores a changed part of an IP header.
///
/// A NIC may have summed up the whole packet (`CHECKSUM_COMPLETE`). In IPv4, a change and the
/// header's own checksum cancel each other in that sum. In IPv6 nothing cancels the change here.
#[inline(always)]
pub(super) fn store_in_header<I: Ip, T>(ctx: &TcContext, at: u32, value: &T) -> Result<(), Drop> {
    let flags = if I::CHECKSUM.is_some() { 0 } else { BPF_F_RECOMPUTE_CSUM };
    helpers::store(ctx, at as usize, value, flags.into()).map_err(|_| Drop::RewriteFailed)
}

/// Translates a port. `place`: 0 for the source's port, 2 for the destination's. The identifier of
/// an ICMP echo is the port of the side that asks, whichever side that is.
#[inline(always)]
pub(super) fn translate_port<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    place: u32,
    old: Be16,
    port: Be16,
) -> Result<(), Drop> {
    if old == port {
        return Ok(());
    }
    let Some((checksum_at, flags)) = transport_checksum(packet) else {
        return Ok(());
    };
    replace_l4(ctx, checksum_at, old.be16().into(), port.be16().into(), flags | 2)?;
    let place = if packet.flow.protocol == I::ICMP { IDENTIFIER } else { place };
    ctx.store_at(packet.transport_offset() + place, &port)
}

/// Returns the offset of the checksum that covers the ports, and the flags with which the kernel
/// updates it. A later fragment has neither ports nor checksum.
#[inline(always)]
fn transport_checksum<I: Ip>(packet: &Parsed<I>) -> Option<(u32, u32)> {
    if matches!(packet.fragment_part(), Fragment::Later) {
        return None;
    }
    let transport = packet.transport_offset();
    Some(match packet.flow.protocol {
        protocol::TCP => (transport + 16, 0),
        // A zero checksum means "none" and stays zero (RFC 768). IPv6 has it only in tunnels (RFC 6935).
        protocol::UDP => (transport + 6, BPF_F_MARK_MANGLED_0),
        // It covers the pseudo header and the ports, however much of the payload it covers
        // (RFC 3828).
        protocol::UDP_LITE => (transport + 6, 0),
        icmp if icmp == I::ICMP => (transport + 2, 0),
        _ => return None,
    })
}

#[inline(always)]
fn replace_l4(ctx: &TcContext, offset: u32, from: u64, to: u64, flags: u32) -> Result<(), Drop> {
    helpers::l4_csum_replace(ctx, offset as usize, from, to, flags.into()).map_err(|_| Drop::RewriteFailed)
}
