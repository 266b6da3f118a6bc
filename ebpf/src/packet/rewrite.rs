//! Changes to addresses, ports and counters of a packet, with every checksum that covers them.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use podwire_common::{
    addr::{Addr, Be16, Mac},
    csum,
    flow::protocol,
    reason::Drop,
};

use super::{Fragment, Headers, Ipv4, Skb};

const IP: u32 = 14;
const TRAFFIC_CLASS: u32 = IP;
const TTL: u32 = IP + 8;
const CHECKSUM: u32 = IP + 10;
const SOURCE: u32 = IP + 12;
const DESTINATION: u32 = IP + 16;

/// One end of a flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Where packets come from.
    Source,
    /// Where they go.
    Destination,
}

/// Sets both link addresses.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn set_macs(ctx: &TcContext, destination: Mac, source: Mac) -> Result<(), Drop> {
    ctx.store_at(0, &[destination, source])
}

/// Takes one from the time to live, as a router does (RFC 1812 section 5.3.1). The caller has seen that it is above 1.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext, headers: &Headers, base: u32) -> Result<(), Drop> {
    let ttl = headers.ttl - 1;
    let old = u16::from_be_bytes([headers.ttl, headers.protocol]);
    let new = u16::from_be_bytes([ttl, headers.protocol]);
    let checksum = csum::replace(headers.checksum.get(), old, new).to_be_bytes();
    ctx.store_at(base + TTL, &[ttl, headers.protocol, checksum[0], checksum[1]])
}

/// Sets DSCP and ECN. To be called before [`decrement_ttl`], with the headers that it is given afterwards.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn set_traffic_class(ctx: &TcContext, headers: &mut Headers, base: u32, class: u8) -> Result<(), Drop> {
    if class == headers.traffic_class {
        return Ok(());
    }
    let old = u16::from_be_bytes([headers.version_length, headers.traffic_class]);
    let new = u16::from_be_bytes([headers.version_length, class]);
    headers.checksum = Be16::new(csum::replace(headers.checksum.get(), old, new));
    headers.traffic_class = class;
    ctx.store_at(base + TRAFFIC_CLASS, &[headers.version_length, class])?;
    ctx.store_at(base + CHECKSUM, &headers.checksum)
}

/// Replaces one end's address, and its port or ICMP identifier where the packet bears it.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn translate(ctx: &TcContext, packet: &Ipv4, end: End, address: &Addr, port: Be16) -> Result<(), Drop> {
    let transport = packet.headers.transport_offset(packet.base);
    let (address_at, old_address, old_port) = match end {
        End::Source => (SOURCE, packet.headers.source, packet.flow.source_port),
        End::Destination => (DESTINATION, packet.headers.destination, packet.flow.destination_port),
    };
    let from = u64::from(u32::from_ne_bytes(old_address));
    let to = u64::from(address.v4_be32());
    if !matches!(packet.headers.fragment_part(), Fragment::Later) {
        let (checksum_at, flags) = match packet.flow.protocol {
            protocol::TCP => (transport + 16, 0),
            // Zero means "none" and stays so (RFC 768).
            protocol::UDP => (transport + 6, BPF_F_MARK_MANGLED_0),
            _ => (transport + 2, 0),
        };
        // ICMP has no pseudo header.
        if packet.flow.protocol != protocol::ICMP {
            replace_l4(ctx, checksum_at, from, to, flags | BPF_F_PSEUDO_HDR | 4)?;
        }
        if old_port != port {
            replace_l4(ctx, checksum_at, old_port.be16().into(), port.be16().into(), flags | 2)?;
            let port_at = match (packet.flow.protocol, end) {
                (protocol::ICMP, _) => transport + 4,
                (_, End::Source) => transport,
                (_, End::Destination) => transport + 2,
            };
            ctx.store_at(port_at, &port)?;
        }
    }
    ctx.l3_csum_replace((packet.base + CHECKSUM) as usize, from, to, 4).map_err(|_| Drop::RewriteFailed)?;
    ctx.store_at(packet.base + address_at, &address.v4())
}

#[inline(always)]
fn replace_l4(ctx: &TcContext, offset: u32, from: u64, to: u64, flags: u32) -> Result<(), Drop> {
    ctx.l4_csum_replace(offset as usize, from, to, flags.into()).map_err(|_| Drop::RewriteFailed)
}
