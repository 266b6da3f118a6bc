//! A packet of a hook: loading its headers, checking them, reading its 5-tuple (RFC 9293, RFC 768,
//! RFC 792).

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Flow, FragmentKey},
    addr::Be16,
    flow::protocol,
    nat::{TCP_ACK, TCP_SYN},
    reason::Drop,
};

use super::{
    Ipv4, Skb,
    headers::{ETHERNET_LENGTH, Fragment, Headers, IcmpError, IcmpKind, Ip},
    link_header,
};

/// [`Parsed::base`] of a packet without link header. Added to an IP header's place in a frame, it
/// gives 0.
const BARE: u32 = ETHERNET_LENGTH.wrapping_neg();
/// `linux/skbuff.h`.
const GSO_BY_FRAGS: u32 = 0xffff;

/// The place for a packet that is not loaded yet. The stack has only 512 bytes. So a packet stays
/// in its place when it is loaded and parsed, and only its type changes.
pub struct Place<I: Ip = Ipv4>(Parsed<I>);

impl<I: Ip> Place<I> {
    /// Returns an empty place.
    #[inline(always)]
    pub fn new() -> Self {
        // SAFETY: zeros are a valid value of every field. If the fields were set one by one, the
        // compiler would first make the value elsewhere on the stack.
        Self(unsafe { core::mem::zeroed() })
    }

    /// Loads the headers of a frame.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the frame is shorter than an IP header over Ethernet.
    #[inline(always)]
    pub fn load(&mut self, ctx: &TcContext) -> Result<Loaded<'_, I>, Drop> {
        ctx.read_into(0, &mut self.0.headers)?;
        Ok(Loaded { packet: &mut self.0 })
    }

    /// Loads the headers of the inner frame that starts at `base`.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when there is no IP header over Ethernet.
    #[inline(always)]
    pub fn load_inner(&mut self, ctx: &TcContext, base: u32) -> Result<Loaded<'_, I>, Drop> {
        self.0.load_inner(ctx, base)
    }

    /// Loads the headers of a packet that starts with its IP header. The link addresses are
    /// unspecified.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when the packet is shorter than an IP header.
    #[inline(always)]
    pub fn load_bare(&mut self, ctx: &TcContext) -> Result<Loaded<'_, I>, Drop> {
        self.0.base = BARE;
        self.0.headers.ethertype = Be16::new(ctx.ethertype());
        ctx.load_into(0, &mut self.0.headers.ip)?;
        Ok(Loaded { packet: &mut self.0 })
    }
}

/// A packet with loaded headers, not yet checked.
pub struct Loaded<'a, I: Ip = Ipv4> {
    packet: &'a mut Parsed<I>,
}

/// A packet that could not be parsed, and the reason.
pub struct Faulty<'a, I: Ip = Ipv4> {
    /// The headers as they were loaded.
    pub headers: &'a Headers<I>,
    /// The fault.
    pub reason: Drop,
}

impl<I: Ip> From<Faulty<'_, I>> for Drop {
    #[inline(always)]
    fn from(faulty: Faulty<'_, I>) -> Self {
        faulty.reason
    }
}

impl<'a, I: Ip> Loaded<'a, I> {
    /// Returns the loaded headers.
    #[inline(always)]
    pub fn headers(&self) -> &Headers<I> {
        &self.packet.headers
    }

    /// Walks along the headers up to the transport, without any other check.
    ///
    /// # Errors
    /// The reason why there is no transport header.
    #[inline(always)]
    pub fn walk(self, ctx: &TcContext) -> Result<&'a Parsed<I>, Drop> {
        let packet = self.packet;
        packet.headers.ip.walk(ctx, packet.base.wrapping_add(ETHERNET_LENGTH), &mut packet.walk)?;
        Ok(packet)
    }

    /// Checks the headers and reads the 5-tuple. The caller has checked that the EtherType is the
    /// family's.
    ///
    /// # Errors
    /// [`Drop::BadIpHeader`] for an impossible version, header length or total length;
    /// [`Drop::Truncated`] when the packet ends before a header does.
    #[inline(always)]
    pub fn parse(self, ctx: &TcContext) -> Result<&'a mut Parsed<I>, Faulty<'a, I>> {
        match self.packet.parse(ctx) {
            Ok(()) => Ok(self.packet),
            Err(reason) => Err(Faulty { headers: &self.packet.headers, reason }),
        }
    }
}

/// A checked IP packet.
#[repr(C)]
pub struct Parsed<I: Ip = Ipv4> {
    /// The headers as on the wire.
    pub headers: Headers<I>,
    /// What the walk along the headers has found.
    walk: I::Walk,
    /// The packet's 5-tuple. For an ICMP error it is the reversed 5-tuple of the quoted packet,
    /// which is the flow that the error follows. The ports of a later fragment are not known here
    /// and are 0.
    pub flow: Flow,
    /// Where the frame starts, bytes. Without a link header, the value is as if the IP header came
    /// after one, modulo 2³².
    pub base: u32,
    /// Bytes of IP header and payload, of the packet or of the whole large segment.
    pub length: u32,
    /// Bytes of the IP and transport headers that each segment of a large segment repeats.
    pub repeated_headers: u32,
    /// TCP flags; 0 for other protocols.
    pub tcp_flags: u8,
    /// Whether it is an ICMP error.
    pub is_error: bool,
    /// Whether it is an ICMP request with an identifier, such as an echo, or the reply to one.
    pub is_query: bool,
    /// Whether it is a first fragment that came after a later one.
    pub is_overtaken: bool,
    /// The generation when the programs began to judge the packet; the caller sets it.
    pub generation: u32,
}

impl<I: Ip> Parsed<I> {
    /// Loads the headers of the inner frame that starts at `base`, in place of this packet's
    /// headers.
    ///
    /// # Errors
    /// [`Drop::Truncated`] when there is no IP header over Ethernet.
    #[inline(always)]
    pub fn load_inner(&mut self, ctx: &TcContext, base: u32) -> Result<Loaded<'_, I>, Drop> {
        self.base = base;
        // Reset all fields that parsing may leave unchanged.
        (self.flow.source_port, self.flow.destination_port) = (Be16::ZERO, Be16::ZERO);
        (self.tcp_flags, self.is_error, self.is_query, self.is_overtaken) = (0, false, false, false);
        ctx.read_into(base, &mut self.headers)?;
        Ok(Loaded { packet: self })
    }

    /// Adds a link header to a packet that has none.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    #[inline(always)]
    pub fn add_link_header(&mut self, ctx: &TcContext) -> Result<(), Drop> {
        self.base = 0;
        link_header::add(ctx, I::ETHERTYPE)
    }

    /// Returns the bytes in front of the transport header, without the link header.
    #[inline(always)]
    pub fn header_length(&self) -> u32 {
        self.headers.ip.header_length(&self.walk)
    }

    /// Returns the protocol number of the transport. Of an ICMP error it is the error's own.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        self.headers.ip.protocol(&self.walk)
    }

    /// Returns the offset of the transport header in the frame.
    #[inline(always)]
    pub fn transport_offset(&self) -> u32 {
        self.base.wrapping_add(ETHERNET_LENGTH) + self.header_length()
    }

    /// Returns which part of its datagram the packet is.
    #[inline(always)]
    pub fn fragment_part(&self) -> Fragment {
        self.headers.ip.fragment_part(&self.walk)
    }

    /// Returns the key of the datagram that a fragment belongs to.
    #[inline(always)]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.headers.source_address(),
            destination: self.headers.destination_address(),
            identification: self.headers.ip.identification(&self.walk),
            protocol: self.headers.ip.datagram_protocol(),
            reserved: [0; 3],
        }
    }

    /// Returns the bytes in front of the transport header of the packet that an error quotes at
    /// `offset`.
    ///
    /// # Errors
    /// [`Drop::Truncated`].
    #[inline(always)]
    pub fn quoted_header_length(&self, ctx: &TcContext, offset: u32) -> Result<u32, Drop> {
        I::quoted_header_length(ctx, offset, &self.walk)
    }

    /// Returns whether the packet has an authentication header in front of its transport.
    #[inline(always)]
    pub fn is_authenticated(&self) -> bool {
        self.headers.ip.is_authenticated(&self.walk)
    }

    /// Returns whether the packet has neither IP options nor extension headers.
    #[inline(always)]
    pub fn has_bare_header(&self) -> bool {
        self.headers.ip.is_bare(&self.walk)
    }

    /// Returns the ICMP error about this packet, of a type and code of [`Ip`].
    #[inline(always)]
    pub fn error(&self, kind: [u8; 2], mtu: u32) -> IcmpError {
        IcmpError { kind, length: self.length.min(u16::MAX.into()) as u16, mtu }
    }

    /// Turns this packet into the ICMP error about it, in the name of its destination.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`], [`Drop::Truncated`].
    #[inline(always)]
    pub fn answer_as_destination(&self, ctx: &TcContext, kind: [u8; 2], mtu: u32) -> Result<(), Drop> {
        let (headers, error) = (&self.headers, self.error(kind, mtu));
        I::answer_with_error(ctx, headers, &headers.destination_address(), &headers.destination_mac, error)
    }

    /// Returns whether an ICMP error can quote this packet.
    #[inline(always)]
    pub fn is_quotable(&self) -> bool {
        self.headers.ip.is_quotable(&self.walk)
    }

    // Works in place and is not inlined, as all functions that need much stack: the stack has only
    // 512 bytes, and functions that are called one after the other share it.
    #[inline(never)]
    fn parse(&mut self, ctx: &TcContext) -> Result<(), Drop> {
        if !self.headers.ip.is_possible() {
            return Err(Drop::BadIpHeader);
        }
        let start = self.base.wrapping_add(ETHERNET_LENGTH);
        let available = ctx.bytes().wrapping_sub(start);
        self.headers.ip.walk(ctx, start, &mut self.walk)?;
        let header_length = self.header_length();
        // The kernel rewrites the length field of a large segment when it cuts the segment. Until
        // then only the actual length counts.
        self.length = if ctx.segment_payload() != 0 { available } else { self.headers.ip.total_length() };
        if self.length < header_length {
            return Err(Drop::BadIpHeader);
        }
        if self.length > available {
            return Err(Drop::Truncated);
        }
        self.flow.source = self.headers.source_address();
        self.flow.destination = self.headers.destination_address();
        self.flow.protocol = self.headers.ip.protocol(&self.walk);
        self.repeated_headers = header_length;
        if matches!(self.fragment_part(), Fragment::Later) {
            return Ok(());
        }
        self.parse_transport(ctx, self.length - header_length)
    }

    /// Returns whether it is TCP or UDP, without fragments and IP options.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        self.has_bare_header()
            && matches!(self.fragment_part(), Fragment::Whole)
            && matches!(self.headers.ip.protocol(&self.walk), protocol::TCP | protocol::UDP)
    }

    /// Returns whether it is the first packet of a TCP connection.
    #[inline(always)]
    pub fn begins_connection(&self) -> bool {
        self.flow.protocol == protocol::TCP && self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Returns whether a packet without a translation may begin a flow to a hostPort or a service: a
    /// TCP connection begins with its first packet only.
    #[inline(always)]
    pub fn begins_flow(&self) -> bool {
        match self.flow.protocol {
            protocol::TCP => self.begins_connection(),
            protocol::UDP => true,
            _ => false,
        }
    }

    /// Returns the length in bytes of the largest IP packet that leaves on the wire. This is one
    /// segment of a large segment, or the packet itself.
    #[inline(always)]
    pub fn wire_length(&self, ctx: &TcContext) -> u32 {
        match ctx.segment_payload() {
            0 => self.length,
            // Segments of different sizes (SCTP): the kernel knows the sizes, but this program does
            // not.
            GSO_BY_FRAGS => self.repeated_headers,
            payload => self.repeated_headers + payload,
        }
    }

    #[inline(always)]
    fn parse_transport(&mut self, ctx: &TcContext, available: u32) -> Result<(), Drop> {
        let offset = self.transport_offset();
        match self.flow.protocol {
            protocol::TCP => {
                let tcp: Tcp = read_within(ctx, offset, available)?;
                self.flow.source_port = tcp.source_port;
                self.flow.destination_port = tcp.destination_port;
                self.tcp_flags = tcp.flags;
                self.repeated_headers += u32::from(tcp.data_offset >> 4) * 4;
            }
            protocol::UDP | protocol::UDP_LITE => {
                let udp: Ports = read_within(ctx, offset, available)?;
                self.flow.source_port = udp.source_port;
                self.flow.destination_port = udp.destination_port;
                self.repeated_headers += size_of::<Ports>() as u32;
            }
            protocol::SCTP => {
                let sctp: Ports = read_within(ctx, offset, available)?;
                self.flow.source_port = sctp.source_port;
                self.flow.destination_port = sctp.destination_port;
            }
            icmp if icmp == I::ICMP => {
                let icmp: Icmp = load_within(ctx, offset, available)?;
                let kind = I::icmp_kind(icmp.kind);
                if kind == IcmpKind::Error {
                    self.is_error = true;
                    let quote = size_of::<Icmp>() as u32;
                    return self.parse_quote(ctx, offset + quote, available - quote);
                }
                self.is_query = matches!(kind, IcmpKind::Request | IcmpKind::Reply);
                (self.flow.source_port, self.flow.destination_port) = icmp.ports(kind);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the reversed 5-tuple of the packet that an ICMP error quotes. The quote has the IP
    /// header and at least 8 bytes more (RFC 792).
    #[inline(always)]
    fn parse_quote(&mut self, ctx: &TcContext, offset: u32, available: u32) -> Result<(), Drop> {
        let quoted = I::quoted(ctx, offset, available)?;
        self.flow.source = quoted.destination;
        self.flow.destination = quoted.source;
        self.flow.protocol = quoted.protocol;
        I::remember_quoted(&mut self.walk, quoted.header_length);
        if quoted.is_later_fragment {
            return Ok(());
        }
        let offset = offset + quoted.header_length;
        let available = available.saturating_sub(quoted.header_length);
        match quoted.protocol {
            protocol::TCP | protocol::UDP | protocol::UDP_LITE | protocol::SCTP => {
                let ports: Ports = load_within(ctx, offset, available)?;
                self.flow.source_port = ports.destination_port;
                self.flow.destination_port = ports.source_port;
            }
            icmp if icmp == I::ICMP => {
                let icmp: Icmp = load_within(ctx, offset, available)?;
                (self.flow.destination_port, self.flow.source_port) = icmp.ports(I::icmp_kind(icmp.kind));
            }
            _ => {}
        }
        Ok(())
    }
}

#[inline(always)]
pub(super) fn load_within<T>(ctx: &TcContext, offset: u32, available: u32) -> Result<T, Drop> {
    if available < size_of::<T>() as u32 {
        return Err(Drop::Truncated);
    }
    ctx.load_at(offset)
}

#[inline(always)]
fn read_within<T: Default>(ctx: &TcContext, offset: u32, available: u32) -> Result<T, Drop> {
    if available < size_of::<T>() as u32 {
        return Err(Drop::Truncated);
    }
    let mut value = T::default();
    ctx.read_into(offset, &mut value)?;
    Ok(value)
}

/// The first 8 bytes of UDP, UDP-Lite and SCTP, and of TCP in an ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Ports {
    source_port: Be16,
    destination_port: Be16,
    rest: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Tcp {
    pub(super) source_port: Be16,
    pub(super) destination_port: Be16,
    pub(super) sequence: [u8; 4],
    pub(super) acknowledgement: [u8; 4],
    pub(super) data_offset: u8,
    pub(super) flags: u8,
    pub(super) window: [u8; 2],
    pub(super) checksum: Be16,
    pub(super) urgent: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Icmp {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    identifier: Be16,
    sequence: [u8; 2],
}

impl Icmp {
    /// Returns the source and destination "ports" as in [`Flow`]: the identifier is the port of the
    /// side that asks.
    #[inline(always)]
    fn ports(&self, kind: IcmpKind) -> (Be16, Be16) {
        match kind {
            IcmpKind::Request => (self.identifier, Be16::ZERO),
            IcmpKind::Reply => (Be16::ZERO, self.identifier),
            _ => (Be16::ZERO, Be16::ZERO),
        }
    }
}
