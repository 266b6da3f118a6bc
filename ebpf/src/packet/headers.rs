//! The headers in front of a packet's transport, and what differs between the families of IP.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Macs, Translation},
    addr::{Addr, Be16, Mac},
    flow::FlowAddr,
    reason::Drop,
};

use super::{Ipv4, Parsed};

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

/// Bytes of a frame's link header.
pub const ETHERNET_LENGTH: u32 = 14;

/// An Ethernet header and an IP header, as on the wire. For another EtherType only the first three
/// fields mean anything.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Headers<I = Ipv4> {
    /// Link destination.
    pub destination_mac: Mac,
    /// Link source.
    pub source_mac: Mac,
    /// EtherType of what follows.
    pub ethertype: Be16,
    /// IP header.
    pub ip: I,
}

/// A family of IP: the part of its header that every packet has.
pub trait Ip: Copy {
    /// EtherType of the family.
    const ETHERTYPE: u16;
    /// Protocol number of the family's ICMP.
    const ICMP: u8;
    /// Type and code of the ICMP error about a packet that does not fit a link.
    const TOO_BIG: [u8; 2];
    /// Type and code of the ICMP error about a port at which nothing answers.
    const PORT_UNREACHABLE: [u8; 2];
    /// The least MTU that an error about a packet that does not fit may name.
    const LEAST_MTU: u32;
    /// `AF_*` of the family, as in [`podwire_common::abi::NextHop::family`].
    const FAMILY: u32;
    /// The hostIP that stands for all addresses of the family.
    const ANY_ADDRESS: Addr;
    /// Offset in the header of what a hop changes.
    const HOP: u32;
    /// Offset of the source in the header.
    const SOURCE: u32;
    /// Offset of the destination in the header.
    const DESTINATION: u32;
    /// Offset of the header's own checksum, if it has one.
    const CHECKSUM: Option<u32>;
    /// Whether the checksum of the family's ICMP covers the addresses (RFC 4443 section 2.3).
    const ICMP_COVERS_ADDRESSES: bool;
    /// An address as in the header.
    type Address: Copy + PartialEq;
    /// An address in the family's table of known flows.
    type FlowAddr: FlowAddr;
    /// The bytes that a hop changes, as on the wire.
    type Hop;
    /// The header without its addresses, as on the wire.
    type FixedPart: Copy;
    /// What only a walk along the headers shows. Zeros are a valid value.
    type Walk: Copy;

    /// Returns the address that the packet comes from.
    fn source(&self) -> Addr;
    /// Returns the address that the packet goes to.
    fn destination(&self) -> Addr;
    /// Returns the source as in the header.
    fn raw_source(&self) -> &Self::Address;
    /// Returns the destination as in the header.
    fn raw_destination(&self) -> &Self::Address;
    /// Returns an address of the family as in the header.
    fn raw(address: &Addr) -> &Self::Address;
    /// Returns how a sum changes in which an address is replaced: the arguments `from`, `to` and
    /// size of the kernel's checksum helpers.
    fn change(old: &Self::Address, new: &Self::Address) -> (u64, u64, u32);
    /// Returns a checksum after an address that it covers was replaced. Words are big-endian.
    fn replaced(checksum: u16, old: &Self::Address, new: &Self::Address) -> u16;
    /// Returns the time to live.
    fn ttl(&self) -> u8;
    /// Returns DSCP and ECN.
    fn traffic_class(&self) -> u8;
    /// Sets DSCP and ECN.
    fn set_traffic_class(&mut self, class: u8);
    /// Decrements the time to live, as a router does. The caller has checked that it is above 1.
    fn decrement_ttl(&mut self);
    /// Returns the bytes that a hop changes, with the time to live decremented.
    fn hop(&self) -> Self::Hop;
    /// Returns whether the packet comes from an address.
    fn is_from(&self, address: &Addr) -> bool;
    /// Returns whether the packet goes to an address.
    fn is_to(&self, address: &Addr) -> bool;
    /// Returns the header without its addresses.
    fn fixed_part(&self) -> Self::FixedPart;
    /// Returns the header without its addresses, with the time to live decremented.
    fn decremented(&self) -> Self::FixedPart;
    /// Returns whether the destination is a multicast group.
    fn is_multicast(&self) -> bool;
    /// Returns whether routers must not fragment the packet.
    fn dont_fragment(&self) -> bool;
    /// Returns whether version and length of the header are possible.
    fn is_possible(&self) -> bool;
    /// Returns the bytes of header and payload, as the header says.
    fn total_length(&self) -> u32;
    /// Returns the length field, whatever it covers.
    fn length_field(&self) -> Be16;
    /// Walks along the headers of a packet at `start`, up to the transport header.
    ///
    /// # Errors
    /// The reason why there is no transport header.
    fn walk(&self, ctx: &TcContext, start: u32, walk: &mut Self::Walk) -> Result<(), Drop>;
    /// Returns the bytes in front of the transport header.
    fn header_length(&self, walk: &Self::Walk) -> u32;
    /// Returns the protocol number of the transport.
    fn protocol(&self, walk: &Self::Walk) -> u8;
    /// Returns which part of its datagram the packet is.
    fn fragment_part(&self, walk: &Self::Walk) -> Fragment;
    /// Returns the datagram's identification, network order.
    fn identification(&self, walk: &Self::Walk) -> [u8; 4];
    /// Returns the protocol number that tells a datagram from others of the same identification.
    fn datagram_protocol(&self) -> u8;
    /// Returns whether nothing stands between this part of the header and the transport header.
    fn is_bare(&self, walk: &Self::Walk) -> bool;
    /// Returns whether the quote of [`Ip::answer_with_error`] has what receivers read of the transport
    /// header.
    fn is_quotable(&self, walk: &Self::Walk) -> bool;
    /// Returns whether the packet has an authentication header, which covers the addresses. Only
    /// IPv6 has it in front of the transport; in IPv4 it is the transport.
    fn is_authenticated(&self, walk: &Self::Walk) -> bool;
    /// Returns the kind of an ICMP message by its type.
    fn icmp_kind(kind: u8) -> IcmpKind;
    /// Turns a packet that [is quotable](Ip::is_quotable) into the ICMP error that answers it.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`], [`Drop::Truncated`].
    fn answer_with_error(
        ctx: &TcContext,
        headers: &Headers<Self>,
        from: &Addr,
        from_mac: &Mac,
        error: IcmpError,
    ) -> Result<(), Drop>;
    /// Returns the header of a packet that goes back to the sender from where this one was sent to.
    /// `length`: bytes after the header.
    fn answer(&self, protocol: u8, length: u16) -> Self;
    /// Reads the header of a packet that an ICMP error quotes at `offset`.
    ///
    /// # Errors
    /// [`Drop::BadIpHeader`], [`Drop::Truncated`].
    fn quoted(ctx: &TcContext, offset: u32, available: u32) -> Result<Quoted, Drop>;
    /// Remembers [`Quoted::header_length`], if [`Self::quoted_header_length`] could not find it out
    /// at once.
    fn remember_quoted(walk: &mut Self::Walk, header_length: u32);
    /// Returns [`Quoted::header_length`] of the packet that is quoted at `offset`.
    ///
    /// # Errors
    /// [`Drop::Truncated`].
    fn quoted_header_length(ctx: &TcContext, offset: u32, walk: &Self::Walk) -> Result<u32, Drop>;
    /// Rewrites a packet's flow. See [`super::translate`].
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn translate(ctx: &TcContext, packet: &Parsed<Self>, to: &Translation) -> Result<(), Drop>;
    /// See [`forward`](super::forward).
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn forward(ctx: &TcContext, packet: &Parsed<Self>, to: &Translation) -> Result<(), Drop>;
    /// Gives a plain TCP or UDP packet another source, and decrements its TTL.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn readdress_source(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        source: Self::FlowAddr,
        port: Be16,
    ) -> Result<(), Drop>;
    /// Gives a plain TCP or UDP packet another destination, decrements its TTL, and writes the link
    /// addresses of its headers.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn readdress_destination(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        destination: Self::FlowAddr,
        port: Be16,
    ) -> Result<(), Drop>;
    /// Gives a plain TCP or UDP packet another source and other ports: in the IP header in memory,
    /// and in the transport checksum of the frame. The caller stores the rest.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn set_source(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        source: Self::FlowAddr,
        ports: [Be16; 2],
    ) -> Result<(), Drop>;
    /// Gives a plain TCP or UDP packet another destination and other ports. See
    /// [`Self::set_source`].
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn set_destination(
        ctx: &TcContext,
        packet: &mut Parsed<Self>,
        destination: Self::FlowAddr,
        ports: [Be16; 2],
    ) -> Result<(), Drop>;
    /// Stores a plain packet's headers as they are in memory, and its ports, in a frame that starts
    /// at 0.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    fn store_front(ctx: &TcContext, packet: &Parsed<Self>, ports: [Be16; 2]) -> Result<(), Drop>;
}

/// An ICMP error that a program sends about a packet.
#[derive(Clone, Copy)]
pub struct IcmpError {
    /// Type and code.
    pub kind: [u8; 2],
    /// Bytes of the packet that it is about.
    pub length: u16,
    /// The MTU that it names, or 0.
    pub mtu: u32,
}

/// Kind of an ICMP message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IcmpKind {
    /// An error, which quotes a packet.
    Error,
    /// A request with an identifier.
    Request,
    /// The reply to one.
    Reply,
    /// Anything else.
    Other,
}

/// The header of a quoted packet.
pub struct Quoted {
    /// Where the packet came from.
    pub source: Addr,
    /// Where it went.
    pub destination: Addr,
    /// Protocol number of its transport.
    pub protocol: u8,
    /// Whether its transport header is not in this packet.
    pub is_later_fragment: bool,
    /// Bytes in front of its transport header.
    pub header_length: u32,
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

impl<I: Ip> Headers<I> {
    /// Returns whether the frame says that it carries this family.
    #[inline(always)]
    pub fn is_ip(&self) -> bool {
        self.ethertype.get() == I::ETHERTYPE
    }

    /// Returns the address that the packet comes from.
    #[inline(always)]
    pub fn source_address(&self) -> Addr {
        self.ip.source()
    }

    /// Returns the address that the packet goes to.
    #[inline(always)]
    pub fn destination_address(&self) -> Addr {
        self.ip.destination()
    }

    /// Returns the time to live.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.ip.ttl()
    }

    /// Sets both link addresses.
    #[inline(always)]
    pub fn set_macs(&mut self, macs: Macs) {
        self.destination_mac = macs.destination;
        self.source_mac = macs.source;
    }
}
