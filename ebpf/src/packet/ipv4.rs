//! IPv4 headers (RFC 791).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FAMILY_IPV4, Translation},
    addr::{Addr, Be16, Mac, Quad},
    csum,
    flow::protocol,
    reason::Drop,
};

use super::{
    Parsed, Skb as _, checksum,
    headers::{Fragment, Headers, IcmpError, IcmpKind, Ip, Quoted, ethertype},
    icmp,
    parsed::load_within,
    rewrite,
};

const MINIMUM_HEADER: u32 = 20;
/// Time to live of packets that the programs send themselves.
const OWN_TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The fixed part of an IPv4 header, as on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    /// Version and header length in words.
    pub version_length: u8,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Bytes of header and payload.
    pub total_length: Be16,
    /// Identification of the datagram.
    pub identification: [u8; 2],
    /// Fragment flags and offset.
    pub fragment: Be16,
    /// Time to live.
    pub ttl: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: Be16,
    /// Source address, network order.
    pub source: [u8; 4],
    /// Destination address, network order.
    pub destination: [u8; 4],
}

const _: () = assert!(size_of::<Headers<Ipv4>>() == 34);

impl Ip for Ipv4 {
    const ETHERTYPE: u16 = ethertype::IPV4;
    const ICMP: u8 = protocol::ICMP;
    // Destination unreachable: fragmentation needed (RFC 1191), port unreachable (RFC 792).
    const TOO_BIG: [u8; 2] = [3, 4];
    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const LEAST_MTU: u32 = 0;
    const FAMILY: u32 = FAMILY_IPV4;
    const ANY_ADDRESS: Addr = Addr::from_v4([0; 4]);
    const HOP: u32 = 8;
    const SOURCE: u32 = 12;
    const DESTINATION: u32 = 16;
    const CHECKSUM: Option<u32> = Some(10);
    const ICMP_COVERS_ADDRESSES: bool = false;
    type Address = [u8; 4];
    type FlowAddr = Quad;
    /// TTL, protocol and checksum.
    type Hop = [u8; 4];
    type FixedPart = FixedPart;
    type Walk = ();

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr::from_v4(self.source)
    }

    #[inline(always)]
    fn destination(&self) -> Addr {
        Addr::from_v4(self.destination)
    }

    #[inline(always)]
    fn raw_source(&self) -> &[u8; 4] {
        &self.source
    }

    #[inline(always)]
    fn raw_destination(&self) -> &[u8; 4] {
        &self.destination
    }

    #[inline(always)]
    fn raw(address: &Addr) -> &[u8; 4] {
        let Some(quad) = address.bytes.last_chunk() else { unreachable!() };
        quad
    }

    #[inline(always)]
    fn change(old: &[u8; 4], new: &[u8; 4]) -> (u64, u64, u32) {
        (u32::from_ne_bytes(*old).into(), u32::from_ne_bytes(*new).into(), 4)
    }

    #[inline(always)]
    fn replaced(checksum: u16, old: &[u8; 4], new: &[u8; 4]) -> u16 {
        csum::replace_quad(checksum, *old, *new)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.traffic_class
    }

    #[inline(always)]
    fn set_traffic_class(&mut self, class: u8) {
        let old = u16::from_ne_bytes([self.version_length, self.traffic_class]);
        self.traffic_class = class;
        self.replace_in_checksum(old, u16::from_ne_bytes([self.version_length, class]));
    }

    // RFC 1812 section 5.3.1.
    #[inline(always)]
    fn decrement_ttl(&mut self) {
        (self.ttl, self.checksum) = self.after_hop();
    }

    #[inline(always)]
    fn hop(&self) -> [u8; 4] {
        let (ttl, checksum) = self.after_hop();
        [ttl, self.protocol, checksum.bytes[0], checksum.bytes[1]]
    }

    #[inline(always)]
    fn is_from(&self, address: &Addr) -> bool {
        self.source == address.v4()
    }

    #[inline(always)]
    fn is_to(&self, address: &Addr) -> bool {
        self.destination == address.v4()
    }

    #[inline(always)]
    fn fixed_part(&self) -> FixedPart {
        self.fixed_part_with(self.ttl, self.checksum)
    }

    #[inline(always)]
    fn decremented(&self) -> FixedPart {
        let (ttl, checksum) = self.after_hop();
        self.fixed_part_with(ttl, checksum)
    }

    // 224.0.0.0/4.
    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self.destination[0] & 0xf0 == 0xe0
    }

    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        self.fragment.get() & DONT_FRAGMENT != 0
    }

    #[inline(always)]
    fn is_possible(&self) -> bool {
        self.version_length >> 4 == 4 && self.header_length(&()) >= MINIMUM_HEADER
    }

    #[inline(always)]
    fn total_length(&self) -> u32 {
        self.total_length.get().into()
    }

    #[inline(always)]
    fn length_field(&self) -> Be16 {
        self.total_length
    }

    // The fixed part says all.
    #[inline(always)]
    fn walk(&self, _: &TcContext, _: u32, _: &mut ()) -> Result<(), Drop> {
        Ok(())
    }

    // Options included.
    #[inline(always)]
    fn header_length(&self, _: &()) -> u32 {
        length_of(self.version_length)
    }

    #[inline(always)]
    fn protocol(&self, _: &()) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn fragment_part(&self, _: &()) -> Fragment {
        let fragment = self.fragment.get();
        if fragment & FRAGMENT_OFFSET != 0 {
            Fragment::Later
        } else if fragment & MORE_FRAGMENTS != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    #[inline(always)]
    fn identification(&self, _: &()) -> [u8; 4] {
        [0, 0, self.identification[0], self.identification[1]]
    }

    #[inline(always)]
    fn datagram_protocol(&self) -> u8 {
        self.protocol
    }

    #[inline(always)]
    fn is_bare(&self, _: &()) -> bool {
        self.version_length == 0x45
    }

    // IP options would change the length of the quote.
    #[inline(always)]
    fn is_quotable(&self, walk: &()) -> bool {
        self.is_bare(walk)
    }

    #[inline(always)]
    fn is_authenticated(&self, _: &()) -> bool {
        false
    }

    // Errors: destination unreachable, source quench, redirect, time exceeded, parameter problem
    // (RFC 792). Echo and timestamp have identifiers.
    #[inline(always)]
    fn icmp_kind(kind: u8) -> IcmpKind {
        match kind {
            3 | 4 | 5 | 11 | 12 => IcmpKind::Error,
            8 | 13 => IcmpKind::Request,
            0 | 14 => IcmpKind::Reply,
            _ => IcmpKind::Other,
        }
    }

    #[inline(always)]
    fn answer_with_error(
        ctx: &TcContext,
        headers: &Headers<Self>,
        from: &Addr,
        from_mac: &Mac,
        error: IcmpError,
    ) -> Result<(), Drop> {
        icmp::answer(ctx, headers, from, from_mac, error)
    }

    #[inline(always)]
    fn answer(&self, protocol: u8, length: u16) -> Self {
        Self::new(self.destination, self.source, protocol, length)
    }

    #[inline(always)]
    fn quoted(ctx: &TcContext, offset: u32, available: u32) -> Result<Quoted, Drop> {
        let quoted: Self = load_within(ctx, offset, available)?;
        if !quoted.is_possible() {
            return Err(Drop::BadIpHeader);
        }
        Ok(Quoted {
            source: quoted.source(),
            destination: quoted.destination(),
            protocol: quoted.protocol,
            is_later_fragment: quoted.fragment.get() & FRAGMENT_OFFSET != 0,
            header_length: quoted.header_length(&()),
        })
    }

    #[inline(always)]
    fn remember_quoted(_: &mut (), _: u32) {}

    #[inline(always)]
    fn quoted_header_length(ctx: &TcContext, offset: u32, _: &()) -> Result<u32, Drop> {
        Ok(length_of(ctx.load_at(offset)?))
    }

    #[inline(always)]
    fn translate(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
        rewrite::translate4(ctx, packet, to)
    }

    #[inline(always)]
    fn forward(ctx: &TcContext, packet: &Parsed, to: &Translation) -> Result<(), Drop> {
        rewrite::forward4(ctx, packet, to)
    }

    #[inline(always)]
    fn readdress_source(ctx: &TcContext, packet: &mut Parsed, source: Quad, port: Be16) -> Result<(), Drop> {
        rewrite::readdress_source(ctx, packet, source, port)
    }

    #[inline(always)]
    fn readdress_destination(
        ctx: &TcContext,
        packet: &mut Parsed,
        destination: Quad,
        port: Be16,
    ) -> Result<(), Drop> {
        rewrite::readdress_destination(ctx, packet, destination, port)
    }

    #[inline(always)]
    fn set_source(ctx: &TcContext, packet: &mut Parsed, source: Quad, ports: [Be16; 2]) -> Result<(), Drop> {
        let old = packet.headers.ip.source;
        rewrite::update_transport(ctx, packet, Self::change(&old, &source.bytes), ports)?;
        packet.headers.ip.source = source.bytes;
        packet.headers.ip.replace_address_in_checksum(old, source.bytes);
        Ok(())
    }

    #[inline(always)]
    fn set_destination(
        ctx: &TcContext,
        packet: &mut Parsed,
        destination: Quad,
        ports: [Be16; 2],
    ) -> Result<(), Drop> {
        let old = packet.headers.ip.destination;
        rewrite::update_transport(ctx, packet, Self::change(&old, &destination.bytes), ports)?;
        packet.headers.ip.destination = destination.bytes;
        packet.headers.ip.replace_address_in_checksum(old, destination.bytes);
        Ok(())
    }

    #[inline(always)]
    fn store_front(ctx: &TcContext, packet: &Parsed, ports: [Be16; 2]) -> Result<(), Drop> {
        rewrite::store_front(ctx, packet, ports)
    }
}

impl Ipv4 {
    /// Returns the header of a packet that a program sends itself. `length`: bytes after the header.
    #[inline(always)]
    pub fn new(source: [u8; 4], destination: [u8; 4], protocol: u8, length: u16) -> Self {
        let mut header = Self {
            version_length: 0x45,
            traffic_class: 0,
            total_length: Be16::new(MINIMUM_HEADER as u16 + length),
            identification: [0; 2],
            fragment: Be16::ZERO,
            ttl: OWN_TTL,
            protocol,
            checksum: Be16::ZERO,
            source,
            destination,
        };
        header.checksum = checksum::of_ip(&header);
        header
    }

    #[inline(always)]
    fn fixed_part_with(&self, ttl: u8, checksum: Be16) -> FixedPart {
        FixedPart {
            version_length: self.version_length,
            traffic_class: self.traffic_class,
            total_length: self.total_length,
            identification: self.identification,
            fragment: self.fragment,
            ttl,
            protocol: self.protocol,
            checksum,
        }
    }

    /// Returns TTL and checksum, with the TTL decremented.
    #[inline(always)]
    pub(super) fn after_hop(&self) -> (u8, Be16) {
        let ttl = self.ttl - 1;
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([ttl, self.protocol]);
        (ttl, self.replaced_checksum(old, new))
    }

    /// Updates the checksum for a changed word. Both words are in network order.
    #[inline(always)]
    fn replace_in_checksum(&mut self, old: u16, new: u16) {
        self.checksum = self.replaced_checksum(old, new);
    }

    #[inline(always)]
    fn replaced_checksum(&self, old: u16, new: u16) -> Be16 {
        Be16 { bytes: csum::replace(self.checksum.be16(), old, new).to_ne_bytes() }
    }

    /// Updates the checksum for a changed address. Both addresses are in network order.
    #[inline(always)]
    pub fn replace_address_in_checksum(&mut self, old: [u8; 4], new: [u8; 4]) {
        self.replace_in_checksum(u16::from_ne_bytes([old[0], old[1]]), u16::from_ne_bytes([new[0], new[1]]));
        self.replace_in_checksum(u16::from_ne_bytes([old[2], old[3]]), u16::from_ne_bytes([new[2], new[3]]));
    }
}

/// Returns the length of a header in bytes, options included. `version_length` is the header's
/// first byte.
#[inline(always)]
fn length_of(version_length: u8) -> u32 {
    u32::from(version_length & 0xf) * 4
}

/// The fields of [`Ipv4`] from [`Ipv4::version_length`] to [`Ipv4::checksum`].
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FixedPart {
    version_length: u8,
    traffic_class: u8,
    total_length: Be16,
    identification: [u8; 2],
    fragment: Be16,
    ttl: u8,
    protocol: u8,
    checksum: Be16,
}
