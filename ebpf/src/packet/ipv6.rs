//! IPv6 headers (RFC 8200). A packet may have six extension headers: as many as stand before the
//! transport in the order that RFC 8200 section 4.1 recommends.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Addr, Be16, Mac},
    flow::protocol,
    reason::Drop,
};

use super::{
    Skb,
    headers::{Fragment, Headers, IcmpKind, Ip, Quoted, ethertype},
    icmp6,
    parsed::load_within,
};

const FIXED_HEADER: u32 = 40;
const MORE_FRAGMENTS: u16 = 1;
const FRAGMENT_OFFSET: u16 = 0xfff8;

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
    /// Bytes in front of the transport header, the fixed header included.
    length: u32,
    /// The datagram's identification, network order; 0 without a fragment header.
    identification: [u8; 4],
    /// Offset and flags of the fragment header; 0 without one.
    fragment: u16,
    /// Protocol number of the transport.
    protocol: u8,
    /// Whether there is a fragment header.
    has_fragment_header: bool,
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
    // RFC 8200 section 5. Linux ignores an error that says less.
    const LEAST_MTU: u32 = 1280;
    const HOP: u32 = 7;
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
    fn walk(&self, ctx: &TcContext, start: u32, walk: &mut Walk6) -> Result<(), Drop> {
        walk_along(ctx, start, self.next_header, walk)
    }

    #[inline(always)]
    fn header_length(&self, walk: &Walk6) -> u32 {
        walk.length
    }

    #[inline(always)]
    fn protocol(&self, walk: &Walk6) -> u8 {
        walk.protocol
    }

    #[inline(always)]
    fn fragment_part(&self, walk: &Walk6) -> Fragment {
        part_of(walk.fragment)
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
        walk.length == FIXED_HEADER
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
    fn too_big(
        ctx: &TcContext,
        headers: &Headers<Self>,
        router: &Addr,
        router_mac: &Mac,
        mtu: u32,
    ) -> Result<(), Drop> {
        icmp6::too_big(ctx, headers, router, router_mac, mtu)
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
            is_later_fragment: matches!(part_of(walk.fragment), Fragment::Later),
            header_length: walk.length,
        })
    }
}

impl Walk6 {
    const START: Self =
        Self { length: 0, identification: [0; 4], fragment: 0, protocol: 0, has_fragment_header: false };
}

#[inline(always)]
fn part_of(fragment: u16) -> Fragment {
    if fragment & FRAGMENT_OFFSET != 0 {
        Fragment::Later
    } else if fragment & MORE_FRAGMENTS != 0 {
        Fragment::First
    } else {
        // An atomic fragment is a whole packet (RFC 6946).
        Fragment::Whole
    }
}

/// Walks along the extension headers of a packet at `start`. `first`: the protocol number of what
/// follows the fixed header.
// Not inlined: packets and quoted packets share it. Written out, without a loop: Linux 6.1 refuses
// the loop that the compiler makes, and the bound is visible to every verifier.
#[inline(never)]
fn walk_along(ctx: &TcContext, start: u32, first: u8, walk: &mut Walk6) -> Result<(), Drop> {
    *walk = Walk6 { length: FIXED_HEADER, protocol: first, ..Walk6::START };
    let is_at_end = step(ctx, start, walk)?
        || step(ctx, start, walk)?
        || step(ctx, start, walk)?
        || step(ctx, start, walk)?
        || step(ctx, start, walk)?
        || step(ctx, start, walk)?
        || !is_extension(walk.protocol)
        || matches!(part_of(walk.fragment), Fragment::Later);
    if is_at_end { Ok(()) } else { Err(Drop::ExtensionHeaders) }
}

/// Walks past one extension header. Returns whether the walk is at its end.
#[inline(always)]
fn step(ctx: &TcContext, start: u32, walk: &mut Walk6) -> Result<bool, Drop> {
    // What follows the fragment header of a later fragment is payload. The header names what the
    // first fragment begins with (RFC 8200 section 4.5).
    if !is_extension(walk.protocol) || matches!(part_of(walk.fragment), Fragment::Later) {
        return Ok(true);
    }
    let extension: Extension = ctx.load_at(start + walk.length)?;
    match walk.protocol {
        // The kernel accepts only one.
        protocol::FRAGMENT if walk.has_fragment_header => return Err(Drop::ExtensionHeaders),
        protocol::FRAGMENT => {
            walk.has_fragment_header = true;
            walk.fragment = extension.fragment.get();
            walk.identification = extension.identification;
            walk.length += 8;
        }
        protocol::AH => walk.length += (u32::from(extension.length) + 2) * 4,
        _ => walk.length += (u32::from(extension.length) + 1) * 8,
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
