//! The TCP reset that refuses a connection (RFC 9293 section 3.10.7.1).

use aya_ebpf::programs::TcContext;
use podwire_common::{addr::Be16, csum, flow::protocol, reason::Drop};

use super::{
    Parsed, Skb, checksum,
    headers::{Headers, Ip},
    parsed::Tcp,
};

const RESET_ACK: u8 = 0x14;
/// Length of the header, in words of four bytes, in the upper half of the byte.
const NO_OPTIONS: u8 = 5 << 4;

/// Turns the first packet of a TCP connection into the reset that answers it, from where it was sent
/// to. The packet has neither IP options nor extension headers. `is_checksum_left`: the sender has
/// left the checksum to the kernel.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::Truncated`].
#[inline(always)]
pub fn reset<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, is_checksum_left: bool) -> Result<(), Drop> {
    store_reset(ctx, packet, is_checksum_left)?;
    store_headers(ctx, &packet.headers)
}

// Not inlined: one after the other, the two functions share the stack.
#[inline(never)]
fn store_reset<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, is_checksum_left: bool) -> Result<(), Drop> {
    let sequence: [u8; 4] = ctx.load_at(packet.transport_offset() + 4)?;
    // The SYN takes one number, as does each byte of data (RFC 7413).
    let data = packet.length.wrapping_sub(packet.repeated_headers);
    let mut tcp = Tcp {
        source_port: packet.flow.destination_port,
        destination_port: packet.flow.source_port,
        sequence: [0; 4],
        acknowledgement: u32::from_be_bytes(sequence).wrapping_add(data).wrapping_add(1).to_be_bytes(),
        data_offset: NO_OPTIONS,
        flags: RESET_ACK,
        window: [0; 2],
        checksum: Be16::ZERO,
        urgent: [0; 2],
    };
    let ip = &packet.headers.ip;
    let addresses = checksum::add(0, (&raw const *ip.raw_source()).cast(), 2 * size_of::<I::Address>());
    let length = size_of::<Tcp>() as u16;
    let words = [csum::fold(addresses), length.to_be(), u16::from(protocol::TCP).to_be()];
    let pseudo_header = words.map(u32::from).iter().sum();
    // The kernel still completes a checksum that the sender has left to it: it adds what is here.
    tcp.checksum = if is_checksum_left {
        Be16 { bytes: csum::fold(pseudo_header).to_ne_bytes() }
    } else {
        checksum::finish(checksum::add(pseudo_header, (&raw const tcp).cast(), length.into()))
    };
    let transport = packet.transport_offset();
    ctx.resize(transport + u32::from(length))?;
    ctx.store_at(transport, &tcp)
}

#[inline(never)]
fn store_headers<I: Ip>(ctx: &TcContext, answered: &Headers<I>) -> Result<(), Drop> {
    let headers = Headers {
        destination_mac: answered.source_mac,
        source_mac: answered.destination_mac,
        ethertype: answered.ethertype,
        ip: answered.ip.answer(protocol::TCP, size_of::<Tcp>() as u16),
    };
    ctx.store_at(0, &headers)
}

const _: () = assert!(size_of::<Tcp>() == 20);
