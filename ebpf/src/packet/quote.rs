//! Translation of ICMP errors, by the packet that they quote (RFC 5508 section 4.2).

use aya_ebpf::programs::TcContext;
use podwire_common::{abi::Translation, addr::Be16, csum, flow::protocol, reason::Drop};

use super::{Parsed, Skb, ipv4::length_of};
use crate::helpers;

const IP: u32 = 14;
const CHECKSUM: u32 = 10;
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
const ICMP_HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;

/// Translates an ICMP error. The quoted packet travelled against the flow: the flow's source is the
/// quoted packet's destination. The error itself may come from and go to any address. Its own
/// address is translated only if it is an end of the flow.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(always)]
pub fn translate(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
    let icmp = packet.transport_offset();
    translate_header(ctx, packet, to, icmp)?;
    translate_transport(ctx, packet, to, icmp)?;
    let (from, own) = (&packet.flow, &packet.headers.ip);
    if own.source == from.source.v4() {
        replace_own(ctx, packet.base.wrapping_add(IP), SOURCE, own.source, to.source.v4())?;
    }
    if own.destination == from.destination.v4() {
        replace_own(ctx, packet.base.wrapping_add(IP), DESTINATION, own.destination, to.destination.v4())?;
    }
    Ok(())
}

/// Translates addresses and checksum of the quoted IP header.
#[inline(never)]
fn translate_header(ctx: &TcContext, packet: &Parsed, to: &Translation, icmp: u32) -> Result<(), Drop> {
    let start = icmp + ICMP_HEADER;
    let from = &packet.flow;
    // One after the other: a value that is read before a helper call takes stack during the call.
    store_quad(ctx, icmp, start + SOURCE, from.destination.v4(), to.destination.v4())?;
    store_quad(ctx, icmp, start + DESTINATION, from.source.v4(), to.source.v4())?;
    let old: Be16 = ctx.load_at(start + CHECKSUM)?;
    let checksum = csum::replace_quad(old.get(), from.destination.v4(), to.destination.v4());
    let checksum = csum::replace_quad(checksum, from.source.v4(), to.source.v4());
    store_word(ctx, icmp, start + CHECKSUM, old, Be16::new(checksum))
}

/// Translates ports and checksum of the quoted packet. The quote may end before a TCP checksum:
/// RFC 792 asks for only 8 bytes.
#[inline(never)]
fn translate_transport(ctx: &TcContext, packet: &Parsed, to: &Translation, icmp: u32) -> Result<(), Drop> {
    let version_length: u8 = ctx.load_at(icmp + ICMP_HEADER)?;
    let transport = icmp + ICMP_HEADER + length_of(version_length);
    let from = &packet.flow;
    let (source_at, destination_at, checksum_at) = match from.protocol {
        protocol::TCP => (0, 2, 16),
        protocol::UDP | protocol::UDP_LITE => (0, 2, 6),
        // The identifier is the port of the side that asks.
        protocol::ICMP => (4, 4, 2),
        _ => return Ok(()),
    };
    if let Ok(old) = ctx.load_at::<Be16>(transport + checksum_at)
        && !(from.protocol == protocol::UDP && old == Be16::ZERO)
    {
        let mut checksum = old.get();
        if from.protocol != protocol::ICMP {
            checksum = csum::replace_quad(checksum, from.source.v4(), to.source.v4());
            checksum = csum::replace_quad(checksum, from.destination.v4(), to.destination.v4());
        }
        checksum = csum::replace(checksum, from.source_port.get(), to.source_port.get());
        checksum = csum::replace(checksum, from.destination_port.get(), to.destination_port.get());
        if from.protocol == protocol::UDP && checksum == 0 {
            checksum = 0xffff;
        }
        store_word(ctx, icmp, transport + checksum_at, old, Be16::new(checksum))?;
    }
    store_word(ctx, icmp, transport + source_at, from.destination_port, to.destination_port)?;
    store_word(ctx, icmp, transport + destination_at, from.source_port, to.source_port)
}

/// Stores a word of the quote. The error's own checksum covers the whole quote.
#[inline(always)]
fn store_word(ctx: &TcContext, icmp: u32, at: u32, old: Be16, new: Be16) -> Result<(), Drop> {
    if old == new {
        return Ok(());
    }
    cover(ctx, icmp, old.be16().into(), new.be16().into(), 2)?;
    ctx.store_at(at, &new)
}

#[inline(always)]
fn store_quad(ctx: &TcContext, icmp: u32, at: u32, old: [u8; 4], new: [u8; 4]) -> Result<(), Drop> {
    if old == new {
        return Ok(());
    }
    cover(ctx, icmp, u32::from_ne_bytes(old).into(), u32::from_ne_bytes(new).into(), 4)?;
    ctx.store_at(at, &new)
}

#[inline(always)]
fn cover(ctx: &TcContext, icmp: u32, old: u64, new: u64, size: u64) -> Result<(), Drop> {
    helpers::l4_csum_replace(ctx, (icmp + ICMP_CHECKSUM) as usize, old, new, size)
        .map_err(|_| Drop::RewriteFailed)
}

/// Replaces an address of the error's own header. ICMP has no pseudo header.
#[inline(always)]
fn replace_own(ctx: &TcContext, header: u32, at: u32, old: [u8; 4], new: [u8; 4]) -> Result<(), Drop> {
    if old == new {
        return Ok(());
    }
    let (from, to) = (u32::from_ne_bytes(old).into(), u32::from_ne_bytes(new).into());
    helpers::l3_csum_replace(ctx, (header + CHECKSUM) as usize, from, to, 4)
        .map_err(|_| Drop::RewriteFailed)?;
    ctx.store_at(header + at, &new)
}
