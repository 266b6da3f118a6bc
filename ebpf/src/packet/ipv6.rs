//! IPv6 headers (RFC 8200). A packet may have six extension headers: as many as stand before the
//! transport in the order that RFC 8200 section 4.1 recommends.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FAMILY_IPV6, Translation},
    addr::{Addr, Be16, Mac},
    csum,
    flow::protocol,
    reason::Drop,
};

use super::{
    Parsed, Skb, checksum,
    headers::{ETHERNET_LENGTH, Fragment, Headers, IcmpError, IcmpKind, Ip, Quoted, ethertype},
    icmp6,
    parsed::load_within,
    rewrite,
};
use crate::global::global;

const FIXED_HEADER: u32 = 40;
const MORE_FRAGMENTS: u16 = 1;
const FRAGMENT_OFFSET: u16 = 0xfff8;
/// [`Walk6::flags`]: there is a fragment header.
const FRAGMENT_HEADER: u8 = 1;
/// [`Walk6::flags`]: there is an authentication header.
const AUTHENTICATION_HEADER: u8 = 2;
/// [`Walk6::flags`]: the packet is a first fragment.
const FIRST: u8 = 4;
/// [`Walk6::flags`]: the packet is a later fragment.
const LATER: u8 = 8;

/// The fixed IPv6 header, as on the wire.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class and flow label.
    pub version_class_label: [u8; 4],
    /// Bytes after this header.
    pub payload_length: Be16,
    /// Protocol number of what follows.
    pub next_header: u8,
    /// Time to live.
    pub hop_limit: u8,
    /// Source address, network order.
    pub source: [u8; 16],
    /// Destination address, network order.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<Headers<Ipv6>>() == 54);

/// The fields of [`Ipv6`] before the addresses.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct FixedPart6 {
    version_class_label: [u8; 4],
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
}

/// What stands between the fixed header and the transport header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk6 {
    /// The datagram's identification, network order; 0 without a fragment header.
    identification: [u8; 4],
    /// Bytes in front of the transport header, the fixed header included.
    length: u16,
    /// Of an ICMP error: bytes in front of the transport header of the quoted packet.
    quoted_length: u16,
    /// Protocol number of the transport.
    protocol: u8,
    /// [`FRAGMENT_HEADER`], [`AUTHENTICATION_HEADER`], [`FIRST`], [`LATER`].
    flags: u8,
}

/// The beginning of every extension header. Of a fragment header it is the whole.
#[repr(C)]
#[derive(Clone, Copy)]
struct Extension {
    next_header: u8,
    length: u8,
    fragment: Be16,
    identification: [u8; 4],
}

impl Ip for Ipv6 {
    const ETHERTYPE: u16 = ethertype::IPV6;
    const ICMP: u8 = protocol::ICMPV6;
    // RFC 4443 sections 3.1 and 3.2.
    const TOO_BIG: [u8; 2] = [2, 0];
    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    // RFC 8200 section 5. Linux ignores an error that says less.
    const LEAST_MTU: u32 = 1280;
    const FAMILY: u32 = FAMILY_IPV6;
    const ANY_ADDRESS: Addr = Addr::UNSPECIFIED;
    const HOP: u32 = 7;
    const SOURCE: u32 = 8;
    const DESTINATION: u32 = 24;
    const CHECKSUM: Option<u32> = None;
    const ICMP_COVERS_ADDRESSES: bool = true;
    type Address = [u8; 16];
    type FlowAddr = Addr;
    type Hop = u8;
    type FixedPart = FixedPart6;
    type Walk = Walk6;

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr { bytes: self.source }
    }

    #[inline(always)]
    fn destination(&self) -> Addr {
        Addr { bytes: self.destination }
    }

    #[inline(always)]
    fn raw_source(&self) -> &[u8; 16] {
        &self.source
    }

    #[inline(always)]
    fn raw_destination(&self) -> &[u8; 16] {
        &self.destination
    }

    #[inline(always)]
    fn raw(address: &Addr) -> &[u8; 16] {
        &address.bytes
    }

    // The helpers take no more than four bytes at once, but also a difference.
    #[inline(always)]
    fn change(old: &[u8; 16], new: &[u8; 16]) -> (u64, u64, u32) {
        (0, checksum::difference(old, new).into(), 0)
    }

    #[inline(always)]
    fn replaced(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
        csum::replace_address(checksum, old, new)
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.hop_limit
    }

    #[inline(always)]
    fn traffic_class(&self) -> u8 {
        self.version_class_label[0] << 4 | self.version_class_label[1] >> 4
    }

    #[inline(always)]
    fn set_traffic_class(&mut self, class: u8) {
        self.version_class_label[0] = 0x60 | class >> 4;
        self.version_class_label[1] = class << 4 | self.version_class_label[1] & 0xf;
    }

    #[inline(always)]
    fn decrement_ttl(&mut self) {
        self.hop_limit -= 1;
    }

    #[inline(always)]
    fn hop(&self) -> u8 {
        self.hop_limit - 1
    }

    #[inline(always)]
    fn is_from(&self, address: &Addr) -> bool {
        self.source == address.bytes
    }

    #[inline(always)]
    fn is_to(&self, address: &Addr) -> bool {
        self.destination == address.bytes
    }

    #[inline(always)]
    fn fixed_part(&self) -> FixedPart6 {
        FixedPart6 {
            version_class_label: self.version_class_label,
            payload_length: self.payload_length,
            next_header: self.next_header,
            hop_limit: self.hop_limit,
        }
    }

    #[inline(always)]
    fn decremented(&self) -> FixedPart6 {
        FixedPart6 { hop_limit: self.hop_limit - 1, ..self.fixed_part() }
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        self.destination[0] == 0xff
    }

    // Only a sender fragments.
    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_possible(&self) -> bool {
        self.version_class_label[0] >> 4 == 6
    }

    #[inline(always)]
    fn total_length(&self) -> u32 {
        u32::from(self.payload_length.get()) + FIXED_HEADER
    }

    #[inline(always)]
    fn length_field(&self) -> Be16 {
        self.payload_length
    }

    #[inline(always)]
    fn walk(&self, ctx: &TcContext, start: u32, walk: &mut Walk6) -> Result<(), Drop> {
        walk_along(ctx, start, self.next_header, walk)
    }

    #[inline(always)]
    fn header_length(&self, walk: &Walk6) -> u32 {
        walk.length.into()
    }

    #[inline(always)]
    fn protocol(&self, walk: &Walk6) -> u8 {
        walk.protocol
    }

    #[inline(always)]
    fn fragment_part(&self, walk: &Walk6) -> Fragment {
        match walk.flags & (FIRST | LATER) {
            0 => Fragment::Whole,
            FIRST => Fragment::First,
            _ => Fragment::Later,
        }
    }

    #[inline(always)]
    fn identification(&self, walk: &Walk6) -> [u8; 4] {
        walk.identification
    }

    // RFC 8200 section 4.5: addresses and identification name the datagram.
    #[inline(always)]
    fn datagram_protocol(&self) -> u8 {
        0
    }

    #[inline(always)]
    fn is_bare(&self, walk: &Walk6) -> bool {
        walk.length == FIXED_HEADER as u16
    }

    #[inline(always)]
    fn is_quotable(&self, walk: &Walk6) -> bool {
        walk.length <= icmp6::LONGEST_QUOTED_HEADERS
    }

    #[inline(always)]
    fn is_authenticated(&self, walk: &Walk6) -> bool {
        walk.flags & AUTHENTICATION_HEADER != 0
    }

    // RFC 4443 section 2.1.
    #[inline(always)]
    fn icmp_kind(kind: u8) -> IcmpKind {
        match kind {
            0..128 => IcmpKind::Error,
            128 => IcmpKind::Request,
            129 => IcmpKind::Reply,
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
        icmp6::answer(ctx, headers, from, from_mac, error)
    }

    #[inline(always)]
    fn answer(&self, protocol: u8, length: u16) -> Self {
        Self {
            version_class_label: [0x60, 0, 0, 0],
            payload_length: Be16::new(length),
            next_header: protocol,
            hop_limit: icmp6::HOP_LIMIT,
            source: self.destination,
            destination: self.source,
        }
    }

    #[inline(always)]
    fn quoted(ctx: &TcContext, offset: u32, available: u32) -> Result<Quoted, Drop> {
        let quoted: Self = load_within(ctx, offset, available)?;
        if !quoted.is_possible() {
            return Err(Drop::BadIpHeader);
        }
        let mut walk = Walk6::START;
        walk_along(ctx, offset, quoted.next_header, &mut walk)?;
        Ok(Quoted {
            source: quoted.source(),
            destination: quoted.destination(),
            protocol: walk.protocol,
            is_later_fragment: walk.flags & LATER != 0,
            header_length: walk.length.into(),
        })
    }

    #[inline(always)]
    fn remember_quoted(walk: &mut Walk6, header_length: u32) {
        walk.quoted_length = header_length as u16;
    }

    #[inline(always)]
    fn quoted_header_length(_: &TcContext, _: u32, walk: &Walk6) -> Result<u32, Drop> {
        Ok(walk.quoted_length.into())
    }

    #[inline(always)]
    fn translate(ctx: &TcContext, packet: &Parsed<Self>, to: &Translation) -> Result<(), Drop> {
        rewrite::translate6(ctx, packet, to)
    }

    #[inline(always)]
    fn forward(ctx: &TcContext, packet: &Parsed<Self>, to: &Translation) -> Result<(), Drop> {
        rewrite::decrement_ttl(ctx, &packet.headers, 0)?;
        Self::translate(ctx, packet, to)
    }

    #[inline(always)]
    fn readdress_source(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        source: Addr,
        port: Be16,
    ) -> Result<(), Drop> {
        rewrite::readdress_transport(ctx, packet, (&packet.headers.ip.source, &source.bytes))?;
        rewrite::translate_port(ctx, packet, 0, packet.flow.source_port, port)?;
        let ip = &mut packet.headers.ip;
        ip.source = source.bytes;
        ip.decrement_ttl();
        rewrite::store_in_header::<Self, _>(ctx, ETHERNET_LENGTH, ip)
    }

    #[inline(always)]
    fn readdress_destination(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        destination: Addr,
        port: Be16,
    ) -> Result<(), Drop> {
        rewrite::readdress_transport(ctx, packet, (&packet.headers.ip.destination, &destination.bytes))?;
        rewrite::translate_port(ctx, packet, 2, packet.flow.destination_port, port)?;
        packet.headers.ip.destination = destination.bytes;
        packet.headers.ip.decrement_ttl();
        rewrite::store_in_parts(ctx, &packet.headers)
    }

    #[inline(always)]
    fn set_source(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        source: Addr,
        ports: [Be16; 2],
    ) -> Result<(), Drop> {
        rewrite::update_transport(
            ctx,
            packet,
            Self::change(&packet.headers.ip.source, &source.bytes),
            ports,
        )?;
        packet.headers.ip.source = source.bytes;
        Ok(())
    }

    #[inline(always)]
    fn set_destination(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        destination: Addr,
        ports: [Be16; 2],
    ) -> Result<(), Drop> {
        let change = Self::change(&packet.headers.ip.destination, &destination.bytes);
        rewrite::update_transport(ctx, packet, change, ports)?;
        packet.headers.ip.destination = destination.bytes;
        Ok(())
    }

    #[inline(always)]
    fn store_front(ctx: &TcContext, packet: &Parsed<Self>, ports: [Be16; 2]) -> Result<(), Drop> {
        rewrite::store_front6(ctx, packet, ports)
    }
}

impl Walk6 {
    const START: Self = Self { identification: [0; 4], length: 0, quoted_length: 0, protocol: 0, flags: 0 };
}

/// Walks along the extension headers of a packet at `start`. `first`: the protocol number of what
/// follows the fixed header.
#[inline(always)]
fn walk_along(ctx: &TcContext, start: u32, first: u8, walk: &mut Walk6) -> Result<(), Drop> {
    // The function counts from the start of the frame.
    *walk = Walk6 { length: (start + FIXED_HEADER) as u16, protocol: first, ..Walk6::START };
    let code = podwire_walk6(ctx.skb.skb, walk);
    walk.length = walk.length.wrapping_sub(start as u16);
    match code {
        DONE => Ok(()),
        CUT => Err(Drop::Truncated),
        _ => Err(Drop::ExtensionHeaders),
    }
}

const DONE: i32 = 0;
const CUT: i32 = 1;
const REFUSED: i32 = 2;

// Global: the verifier would otherwise follow the code behind each walk for every outcome.
global! {
    fn podwire_walk6(ctx, walk: mut Walk6) -> i32, or REFUSED {
        match walk_to_end(ctx, walk) {
            Ok(()) => DONE,
            Err(Drop::Truncated) => CUT,
            Err(_) => REFUSED,
        }
    }
}

// Written out, without a loop: Linux 6.1 refuses the loop that the compiler makes, and the bound is
// visible to every verifier.
#[inline(always)]
fn walk_to_end(ctx: &TcContext, walk: &mut Walk6) -> Result<(), Drop> {
    let is_at_end = step(ctx, walk)?
        || step(ctx, walk)?
        || step(ctx, walk)?
        || step(ctx, walk)?
        || step(ctx, walk)?
        || step(ctx, walk)?
        || !is_extension(walk.protocol)
        || walk.flags & LATER != 0;
    if is_at_end { Ok(()) } else { Err(Drop::ExtensionHeaders) }
}

/// Walks past one extension header. Returns whether the walk is at its end.
#[inline(always)]
fn step(ctx: &TcContext, walk: &mut Walk6) -> Result<bool, Drop> {
    // What follows the fragment header of a later fragment is payload. The header names what the
    // first fragment begins with (RFC 8200 section 4.5).
    if !is_extension(walk.protocol) || walk.flags & LATER != 0 {
        return Ok(true);
    }
    let extension: Extension = ctx.load_at(walk.length.into())?;
    match walk.protocol {
        // The kernel accepts only one.
        protocol::FRAGMENT if walk.flags & FRAGMENT_HEADER != 0 => return Err(Drop::ExtensionHeaders),
        protocol::FRAGMENT => {
            let fragment = extension.fragment.get();
            walk.flags |= FRAGMENT_HEADER
                | if fragment & FRAGMENT_OFFSET != 0 {
                    LATER
                } else if fragment & MORE_FRAGMENTS != 0 {
                    FIRST
                } else {
                    // An atomic fragment is a whole packet (RFC 6946).
                    0
                };
            walk.identification = extension.identification;
            walk.length += 8;
        }
        protocol::AH => {
            walk.flags |= AUTHENTICATION_HEADER;
            walk.length += (u16::from(extension.length) + 2) * 4;
        }
        _ => walk.length += (u16::from(extension.length) + 1) * 8,
    }
    walk.protocol = extension.next_header;
    Ok(false)
}

#[inline(always)]
fn is_extension(number: u8) -> bool {
    matches!(
        number,
        protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::FRAGMENT
            | protocol::DESTINATION_OPTIONS
            | protocol::AH
    )
}
