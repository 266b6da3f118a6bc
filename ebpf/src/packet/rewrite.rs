//! Changes to addresses, ports and TTL of a packet, with every checksum that covers them.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use podwire_common::{
    abi::{Macs, Translation},
    addr::{Addr, Be16, Quad},
    flow::protocol,
    reason::Drop,
};

use super::{Fragment, Headers, Ip, Parsed, Skb, quote};
use crate::{global::global, helpers};

const IP: u32 = 14;
const TTL: u32 = IP + 8;
const CHECKSUM: u32 = IP + 10;
const SOURCE: u32 = IP + 12;
const DESTINATION: u32 = IP + 16;
/// Offset of the identifier in an ICMP echo, from the start of the ICMP header.
const IDENTIFIER: u32 = 4;

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
    ctx.store_at(base + IP + I::HOP, &headers.ip.hop())
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

/// Replaces an address in the transport checksum, which covers the pseudo header.
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
pub fn translate(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    match podwire_translate(ctx.skb.skb, packet, to) {
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

#[inline(always)]
fn translate_here(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    if packet.is_error {
        return quote::translate(ctx, packet, to);
    }
    translate_end(ctx, packet, SOURCE, packet.headers.ip.source, &to.source)?;
    translate_end(ctx, packet, DESTINATION, packet.headers.ip.destination, &to.destination)?;
    translate_port(ctx, packet, 0, packet.flow.source_port, to.source_port)?;
    translate_port(ctx, packet, 2, packet.flow.destination_port, to.destination_port)
}

/// Translates an address. `at`: its place in a frame that starts at 0.
#[inline(always)]
fn translate_end(
    ctx: &TcContext,
    packet: &Parsed,
    at: u32,
    old: [u8; 4],
    address: &Addr,
) -> Result<(), Drop> {
    if old == address.v4() {
        return Ok(());
    }
    let (from, to) = (u64::from(u32::from_ne_bytes(old)), u64::from(address.v4_be32()));
    // ICMP has no pseudo header.
    if packet.flow.protocol != protocol::ICMP
        && let Some((checksum_at, flags)) = transport_checksum(packet)
    {
        replace_l4(ctx, checksum_at, from, to, flags | BPF_F_PSEUDO_HDR | 4)?;
    }
    helpers::l3_csum_replace(ctx, packet.base.wrapping_add(CHECKSUM) as usize, from, to, 4)
        .map_err(|_| Drop::RewriteFailed)?;
    ctx.store_at(packet.base.wrapping_add(at), &address.v4())
}

/// Translates a port. `place`: 0 for the source's port, 2 for the destination's. The identifier of
/// an ICMP echo is the port of the side that asks, whichever side that is.
#[inline(always)]
fn translate_port(ctx: &TcContext, packet: &Parsed, place: u32, old: Be16, port: Be16) -> Result<(), Drop> {
    if old == port {
        return Ok(());
    }
    let Some((checksum_at, flags)) = transport_checksum(packet) else {
        return Ok(());
    };
    replace_l4(ctx, checksum_at, old.be16().into(), port.be16().into(), flags | 2)?;
    let place = if packet.flow.protocol == protocol::ICMP { IDENTIFIER } else { place };
    ctx.store_at(packet.transport_offset() + place, &port)
}

/// Returns the offset of the checksum that covers the ports, and the flags with which the kernel
/// updates it. A later fragment has neither ports nor checksum.
#[inline(always)]
fn transport_checksum(packet: &Parsed) -> Option<(u32, u32)> {
    if matches!(packet.fragment_part(), Fragment::Later) {
        return None;
    }
    let transport = packet.transport_offset();
    Some(match packet.flow.protocol {
        protocol::TCP => (transport + 16, 0),
        // A zero checksum means "none" and stays zero (RFC 768).
        protocol::UDP => (transport + 6, BPF_F_MARK_MANGLED_0),
        // It covers the pseudo header and the ports, however much of the payload it covers
        // (RFC 3828).
        protocol::UDP_LITE => (transport + 6, 0),
        protocol::ICMP => (transport + 2, 0),
        _ => return None,
    })
}

#[inline(always)]
fn replace_l4(ctx: &TcContext, offset: u32, from: u64, to: u64, flags: u32) -> Result<(), Drop> {
    helpers::l4_csum_replace(ctx, offset as usize, from, to, flags.into()).map_err(|_| Drop::RewriteFailed)
}
