//! Translation of ICMP errors, by the packet that they quote (RFC 5508 section 4.2).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{TRANSLATION_RELAY, Translation},
    addr::Be16,
    csum,
    flow::protocol,
    reason::Drop,
};

use super::{
    Ip, Parsed, Skb,
    rewrite::{replace_address, replace_in_pseudo_header},
};
use crate::helpers;

const IP: u32 = 14;
const ICMP_HEADER: u32 = 8;
const ICMP_CHECKSUM: u32 = 2;

/// Translates an ICMP error. The quoted packet travelled against the flow: the flow's source is the
/// quoted packet's destination. The error itself may come from and go to any address. Its own
/// address is translated only if it is an end of the flow. A relayed error always gets the source of
/// the flow: the other side does not know, or does not accept, the router that sent it.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(always)]
pub fn translate<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    translate_quote(ctx, packet, to)?;
    translate_own(ctx, packet, to)
}

/// Translates the packet that an ICMP error quotes.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(always)]
pub fn translate_quote<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    let icmp = packet.transport_offset();
    translate_header(ctx, packet, to, icmp)?;
    translate_transport(ctx, packet, to, icmp)
}

/// Translates the error's own addresses, if they are ends of the flow or if the flow is relayed.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn translate_own<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Result<(), Drop> {
    let (from, own) = (&packet.flow, &packet.headers.ip);
    if to.kind == TRANSLATION_RELAY || own.raw_source() == I::raw(&from.source) {
        replace_own(ctx, packet, I::SOURCE, own.raw_source(), I::raw(&to.source))?;
    }
    if own.raw_destination() == I::raw(&from.destination) {
        replace_own(ctx, packet, I::DESTINATION, own.raw_destination(), I::raw(&to.destination))?;
    }
    Ok(())
}

/// Translates addresses and checksum of the quoted IP header.
#[inline(never)]
fn translate_header<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Translation,
    icmp: u32,
) -> Result<(), Drop> {
    let start = icmp + ICMP_HEADER;
    let from = &packet.flow;
    let (source, new_source) = (I::raw(&from.destination), I::raw(&to.destination));
    let (destination, new_destination) = (I::raw(&from.source), I::raw(&to.source));
    // One after the other: a value that is read before a helper call takes stack during the call.
    store_address::<I>(ctx, icmp, start + I::SOURCE, source, new_source)?;
    store_address::<I>(ctx, icmp, start + I::DESTINATION, destination, new_destination)?;
    let Some(at) = I::CHECKSUM else {
        return Ok(());
    };
    let old: Be16 = ctx.load_at(start + at)?;
    let checksum = I::replaced(old.get(), source, new_source);
    let checksum = I::replaced(checksum, destination, new_destination);
    store_word(ctx, icmp, start + at, old, Be16::new(checksum))
}

/// Translates ports and checksum of the quoted packet. The quote may end before a TCP checksum:
/// RFC 792 asks for only 8 bytes.
#[inline(never)]
fn translate_transport<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Translation,
    icmp: u32,
) -> Result<(), Drop> {
    let start = icmp + ICMP_HEADER;
    let transport = start + packet.quoted_header_length(ctx, start)?;
    let from = &packet.flow;
    let (source_at, destination_at, checksum_at) = match from.protocol {
        protocol::TCP => (0, 2, 16),
        protocol::UDP | protocol::UDP_LITE => (0, 2, 6),
        // The identifier is the port of the side that asks.
        number if number == I::ICMP => (4, 4, 2),
        _ => return Ok(()),
    };
    if let Ok(old) = ctx.load_at::<Be16>(transport + checksum_at)
        && !(from.protocol == protocol::UDP && old == Be16::ZERO)
    {
        let mut checksum = old.get();
        if I::ICMP_COVERS_ADDRESSES || from.protocol != I::ICMP {
            checksum = I::replaced(checksum, I::raw(&from.source), I::raw(&to.source));
            checksum = I::replaced(checksum, I::raw(&from.destination), I::raw(&to.destination));
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
fn store_address<I: Ip>(
    ctx: &TcContext,
    icmp: u32,
    at: u32,
    old: &I::Address,
    new: &I::Address,
) -> Result<(), Drop> {
    if old == new {
        return Ok(());
    }
    let (from, to, size) = I::change(old, new);
    cover(ctx, icmp, from, to, size.into())?;
    ctx.store_at(at, new)
}

#[inline(always)]
fn cover(ctx: &TcContext, icmp: u32, old: u64, new: u64, size: u64) -> Result<(), Drop> {
    helpers::l4_csum_replace(ctx, (icmp + ICMP_CHECKSUM) as usize, old, new, size)
        .map_err(|_| Drop::RewriteFailed)
}

/// Replaces an address of the error's own header.
#[inline(always)]
fn replace_own<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    place: u32,
    old: &I::Address,
    new: &I::Address,
) -> Result<(), Drop> {
    if old == new {
        return Ok(());
    }
    let change = I::change(old, new);
    if I::ICMP_COVERS_ADDRESSES {
        replace_in_pseudo_header(ctx, (packet.transport_offset() + ICMP_CHECKSUM, 0), change)?;
    }
    replace_address::<I>(ctx, packet.base.wrapping_add(IP), place, change, new)
}
