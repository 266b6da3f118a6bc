//! Ethernet and IPv4 headers (RFC 791).

use podwire_common::{
    abi::{FragmentKey, Macs},
    addr::{Addr, Be16, Mac},
    csum,
};

/// EtherTypes (IEEE 802).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// Customer VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// Service VLAN tag.
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

pub(super) const ETHERNET_LENGTH: u32 = 14;
pub(super) const MINIMUM_HEADER: u32 = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// An Ethernet header and the fixed part of an IPv4 header, as on the wire. For another EtherType
/// only the first three fields mean anything.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers {
    /// Link destination.
    pub destination_mac: Mac,
    /// Link source.
    pub source_mac: Mac,
    /// EtherType of what follows.
    pub ethertype: Be16,
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

const _: () = assert!(size_of::<Headers>() == 34);

impl Headers {
    /// Returns whether the frame says that it carries IPv4.
    #[inline(always)]
    pub fn is_ipv4(&self) -> bool {
        self.ethertype.get() == ethertype::IPV4
    }

    /// Returns the address that the packet comes from.
    #[inline(always)]
    pub fn source_address(&self) -> Addr {
        Addr::from_v4(self.source)
    }

    /// Returns the address that the packet goes to.
    #[inline(always)]
    pub fn destination_address(&self) -> Addr {
        Addr::from_v4(self.destination)
    }

    /// Returns whether the destination is a multicast group: 224.0.0.0/4.
    #[inline(always)]
    pub fn is_multicast(&self) -> bool {
        self.destination[0] & 0xf0 == 0xe0
    }

    /// Returns the length of the IPv4 header in bytes, options included.
    #[inline(always)]
    pub fn header_length(&self) -> u32 {
        u32::from(self.version_length & 0xf) * 4
    }

    /// Returns the offset of the transport header, in a frame that starts at `base`.
    #[inline(always)]
    pub fn transport_offset(&self, base: u32) -> u32 {
        base.wrapping_add(ETHERNET_LENGTH) + self.header_length()
    }

    /// Returns whether the sender forbids fragmentation.
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        self.fragment.get() & DONT_FRAGMENT != 0
    }

    /// Returns the bytes from [`Self::version_length`] to [`Self::destination`].
    #[inline(always)]
    pub(super) fn ip_header(&mut self) -> &mut [u8; MINIMUM_HEADER as usize] {
        // SAFETY: they are the last bytes of the structure, which has the layout of the wire.
        unsafe { &mut *(&raw mut *self).byte_add(ETHERNET_LENGTH as usize).cast() }
    }

    /// Returns the IP header without its addresses.
    #[inline(always)]
    pub fn fixed_part(&self) -> FixedPart {
        self.fixed_part_with(self.ttl, self.checksum)
    }

    /// Returns the IP header without its addresses, with the TTL decremented.
    #[inline(always)]
    pub fn decremented(&self) -> FixedPart {
        let (ttl, checksum) = self.after_hop();
        self.fixed_part_with(ttl, checksum)
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
    fn after_hop(&self) -> (u8, Be16) {
        let ttl = self.ttl - 1;
        let old = u16::from_ne_bytes([self.ttl, self.protocol]);
        let new = u16::from_ne_bytes([ttl, self.protocol]);
        (ttl, self.replaced_checksum(old, new))
    }

    /// Sets both link addresses.
    #[inline(always)]
    pub fn set_macs(&mut self, macs: Macs) {
        self.destination_mac = macs.destination;
        self.source_mac = macs.source;
    }

    /// Decrements the TTL, as a router does (RFC 1812 section 5.3.1). The caller has checked that
    /// it is above 1.
    #[inline(always)]
    pub fn decrement_ttl(&mut self) {
        (self.ttl, self.checksum) = self.after_hop();
    }

    /// Sets DSCP and ECN.
    #[inline(always)]
    pub fn set_traffic_class(&mut self, class: u8) {
        let old = u16::from_ne_bytes([self.version_length, self.traffic_class]);
        self.traffic_class = class;
        self.replace_in_checksum(old, u16::from_ne_bytes([self.version_length, class]));
    }

    /// Updates the checksum for a changed word. Both words are in network order.
    #[inline(always)]
    pub fn replace_in_checksum(&mut self, old: u16, new: u16) {
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

    /// Returns which part of its datagram the packet is.
    #[inline(always)]
    pub fn fragment_part(&self) -> Fragment {
        let fragment = self.fragment.get();
        if fragment & FRAGMENT_OFFSET != 0 {
            Fragment::Later
        } else if fragment & MORE_FRAGMENTS != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    /// Returns the key of the datagram that a fragment belongs to.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source_address(),
            destination: self.destination_address(),
            identification: [0, 0, self.identification[0], self.identification[1]],
            protocol: self.protocol,
            reserved: [0; 3],
        }
    }
}

/// The fields of [`Headers`] from [`Headers::version_length`] to [`Headers::checksum`].
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

/// Part of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment, which carries the ports.
    First,
    /// A later fragment, which does not carry the ports.
    Later,
}

/// The IPv4 header that an ICMP error quotes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct QuotedIpv4 {
    pub(super) version_length: u8,
    traffic_class: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    pub(super) fragment: Be16,
    ttl: u8,
    pub(super) protocol: u8,
    checksum: [u8; 2],
    pub(super) source: [u8; 4],
    pub(super) destination: [u8; 4],
}

impl QuotedIpv4 {
    /// Returns the length of a header in bytes, options included. `version_length` is the header's
    /// first byte.
    #[inline(always)]
    pub(super) fn length_of(version_length: u8) -> u32 {
        u32::from(version_length & 0xf) * 4
    }
}
