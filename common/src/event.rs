//! The records that the programs write to the ring `EVENTS`, and what a listener wants of them.

use crate::abi::{Flow, plain};
use crate::addr::{Addr, Be16};

/// The version of [`Event`]. It changes with any change of the record.
pub const VERSION: u8 = 2;

/// What happened to one packet. A flow of zeros is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Event {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The packet's 5-tuple when it came to the hook; of a dropped packet when the programs gave
    /// up. A packet out of the tunnel has the inner one. Zeros if the packet is not IP.
    pub flow: Flow,
    /// The 5-tuple of the packet inside a tunnel packet that was dropped before the programs took
    /// it out.
    pub inner: Flow,
    /// The 5-tuple under which the packet goes on, if the programs have translated it.
    pub translated: Flow,
    /// The link that the hook is on (ifindex).
    pub link: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// [`Endpoint::id`](crate::abi::Endpoint::id) of the pod of this node that has sent the packet,
    /// or else of the pod that gets it. Zero if it is none of this node's.
    pub endpoint: u32,
    /// Number of a service. Reserved, zero.
    pub service: u32,
    /// Number of a policy. Reserved, zero.
    pub policy: u32,
    /// Number of a policy's rule. Reserved, zero.
    pub rule: u32,
    /// EtherType of the frame.
    pub ethertype: Be16,
    /// The number of the reason ([`Kind::Drop`]) or of the path (other kinds).
    pub outcome: u16,
    /// [`VERSION`] of the programs.
    pub version: u8,
    /// One of [`Kind`].
    pub kind: u8,
    /// One of [`Hook`](crate::reason::Hook).
    pub hook: u8,
    /// One of `TRANSLATION_*` of [`abi`](crate::abi); zero if the programs do not translate.
    pub translation: u8,
}

impl Event {
    /// Returns the event of a record of the ring. `None`: the record has another size, or another
    /// version.
    #[cfg(any(test, feature = "std"))]
    pub fn of_record(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Self>() {
            return None;
        }
        #[expect(unsafe_code, reason = "any bytes are a valid event")]
        // SAFETY: the record is as long as the type, which consists of integers and byte arrays.
        let event = unsafe { record.as_ptr().cast::<Self>().read_unaligned() };
        (event.version == VERSION).then_some(event)
    }

    /// Returns the bit of [`Listening::families`] for the packet's family.
    #[inline(always)]
    pub const fn family(&self) -> u32 {
        match self.ethertype.bytes {
            [0x08, 0x00] => FAMILY_BIT_IPV4,
            [0x86, 0xdd] => FAMILY_BIT_IPV6,
            _ => FAMILY_BIT_OTHER,
        }
    }
}

/// What an event is about.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub enum Kind {
    /// A dropped packet. [`Event::outcome`] is a [`Drop`](crate::reason::Drop).
    Drop = 1,
    /// The first packet of a flow. [`Event::outcome`] is a [`Path`](crate::reason::Path).
    Flow = 2,
    /// The same, of a flow that the programs translate.
    Translation = 3,
    /// A packet that comes to a hook: a [`Packet`].
    Packet = 4,
}

impl Kind {
    /// All variants, in order of number.
    pub const ALL: [Self; 4] = [Self::Drop, Self::Flow, Self::Translation, Self::Packet];

    /// Returns the bit of [`Listening::kinds`].
    #[inline(always)]
    pub const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Returns the name that operators read.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Flow => "flow",
            Self::Translation => "translation",
            Self::Packet => "packet",
        }
    }
}

/// The most bytes of a packet in a [`Packet`]: all headers of TCP inside a tunnel, of IPv6 in both,
/// fit.
pub const SNAP_LENGTH: usize = 192;

/// A packet as it came to a hook.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Packet {
    /// Its 5-tuple and the hook: [`Kind::Packet`].
    pub event: Event,
    /// How many bytes of [`Self::data`] count.
    pub captured: u32,
    /// Zero.
    pub reserved: u32,
    /// The first bytes of the frame.
    pub data: [u8; SNAP_LENGTH],
}

impl Packet {
    /// Does the same as [`Event::of_record`] for a packet.
    #[cfg(any(test, feature = "std"))]
    pub fn of_record(record: &[u8]) -> Option<Self> {
        if record.len() != size_of::<Self>() {
            return None;
        }
        #[expect(unsafe_code, reason = "any bytes are a valid packet")]
        // SAFETY: the record is as long as the type, which consists of integers and byte arrays.
        let packet = unsafe { record.as_ptr().cast::<Self>().read_unaligned() };
        (packet.event.version == VERSION).then_some(packet)
    }

    /// Returns the bytes that the program has copied.
    #[cfg(any(test, feature = "std"))]
    pub fn data(&self) -> &[u8] {
        &self.data[..SNAP_LENGTH.min(self.captured as usize)]
    }
}

/// Kinds of new flows.
pub const VERDICTS: u32 = Kind::Flow.bit() | Kind::Translation.bit();
/// Bit of [`Listening::families`]: IPv4.
pub const FAMILY_BIT_IPV4: u32 = 1;
/// Bit of [`Listening::families`]: IPv6.
pub const FAMILY_BIT_IPV6: u32 = 2;
/// Bit of [`Listening::families`]: anything else.
pub const FAMILY_BIT_OTHER: u32 = 4;
/// The most addresses of a filter in the programs.
pub const FILTER_ADDRESSES: usize = 4;
/// The most ports of a filter in the programs.
pub const FILTER_PORTS: usize = 4;

/// Which events somebody wants: the object's section [`LISTENING`](crate::names::LISTENING). The
/// programs write what all listeners together want, and maybe a little more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Listening {
    /// Bits of [`Kind`]. Zero: nobody listens. Then the programs write all drops and nothing else.
    pub kinds: u32,
    /// `FAMILY_BIT_*`.
    pub families: u32,
    /// Reasons for drops, a bit each.
    pub reasons: u64,
    /// Protocols of the transport, a bit each.
    pub protocols: [u64; 4],
    /// How many of [`Self::addresses`] count. Zero: any address.
    pub address_count: u32,
    /// How many of [`Self::ports`] count. Zero: any port.
    pub port_count: u32,
    /// Ports of either end.
    pub ports: [Be16; FILTER_PORTS],
    /// Addresses of either end, before or after a translation.
    pub addresses: [Addr; FILTER_ADDRESSES],
}

impl Listening {
    /// Nobody listens.
    pub const NOBODY: Self = Self { kinds: 0, ..Self::EVERYTHING };

    /// Somebody wants everything.
    pub const EVERYTHING: Self = Self {
        kinds: VERDICTS | Kind::Drop.bit(),
        families: FAMILY_BIT_IPV4 | FAMILY_BIT_IPV6 | FAMILY_BIT_OTHER,
        reasons: u64::MAX,
        protocols: [u64::MAX; 4],
        address_count: 0,
        port_count: 0,
        ports: [Be16::ZERO; FILTER_PORTS],
        addresses: [Addr::UNSPECIFIED; FILTER_ADDRESSES],
    };

    /// Returns whether somebody wants drops for a reason at all.
    #[inline(always)]
    pub const fn wants_drop(&self, reason: u32) -> bool {
        (self.kinds == 0 || self.kinds & Kind::Drop.bit() != 0) && (self.reasons >> (reason & 63)) & 1 != 0
    }

    /// Returns whether the answer of [`Self::wants_packet`] depends on the packet.
    #[inline(always)]
    pub fn is_filter(&self) -> bool {
        let any = Self::EVERYTHING;
        self.address_count != 0
            || self.port_count != 0
            || self.families != any.families
            || self.protocols != any.protocols
    }

    /// Returns whether somebody wants events about such a packet, whatever has happened to it.
    #[inline(always)]
    pub fn wants_packet(&self, event: &Event) -> bool {
        self.families & event.family() != 0
            && (self.has_protocol(&event.flow)
                || (event.inner.protocol != 0 && self.has_protocol(&event.inner)))
            && (self.address_count == 0 || self.has_address(event))
            && (self.port_count == 0 || self.has_port(event))
    }

    #[inline(always)]
    fn has_protocol(&self, flow: &Flow) -> bool {
        let [a, b, c, d] = self.protocols;
        // Not an index: the verifier would have to know that it is within the array.
        let word = match flow.protocol >> 6 {
            0 => a,
            1 => b,
            2 => c,
            _ => d,
        };
        (word >> (flow.protocol & 63)) & 1 != 0
    }

    // Written out, as `has_port`: the verifier of Linux 6.1 may not see the end of a loop.
    #[inline(always)]
    fn has_address(&self, event: &Event) -> bool {
        let is_end = |flow: &Flow, index: usize| {
            self.address_count > index as u32
                && (flow.source == self.addresses[index] || flow.destination == self.addresses[index])
        };
        let is_one = |index| {
            is_end(&event.flow, index) || is_end(&event.inner, index) || is_end(&event.translated, index)
        };
        const { assert!(FILTER_ADDRESSES == 4) };
        is_one(0) || is_one(1) || is_one(2) || is_one(3)
    }

    #[inline(always)]
    fn has_port(&self, event: &Event) -> bool {
        let is_end = |flow: &Flow, index: usize| {
            self.port_count > index as u32
                && (flow.source_port == self.ports[index] || flow.destination_port == self.ports[index])
        };
        let is_one = |index| {
            is_end(&event.flow, index) || is_end(&event.inner, index) || is_end(&event.translated, index)
        };
        const { assert!(FILTER_PORTS == 4) };
        is_one(0) || is_one(1) || is_one(2) || is_one(3)
    }
}

/// How many events of one reason a CPU has written. The programs keep to
/// [`EVENTS_PER_SECOND`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Budget {
    /// When the current second began, nanoseconds of `CLOCK_MONOTONIC`.
    pub since: u64,
    /// Events of this second.
    pub written: u64,
    /// Packets without an event, since the programs were loaded: the second's budget was used, or
    /// the ring was full.
    pub lost: u64,
}

/// The most events of one reason that one CPU writes in a second. One reason must not fill the
/// ring, whatever a pod sends.
pub const EVENTS_PER_SECOND: u64 = 32;

/// The most packets of clients outside that one CPU answers in a second although the programs drop
/// them: as many as Linux sends ICMP errors (`icmp_msgs_per_sec`). Anyone can invent the client.
pub const ANSWERS_PER_SECOND: u64 = 1000;

/// Bytes of the ring, a power of two of pages.
pub const RING_BYTES: usize = 256 << 10;

plain! {
    Event: 160,
    Packet: 360,
    Listening: 128,
    Budget: 24,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: [u8; 4], port: u16, protocol: u8) -> Event {
        let flow = Flow::new(
            Addr::from_v4(source),
            Addr::from_v4([198, 51, 100, 10]),
            Be16::new(port),
            Be16::new(80),
            protocol,
        );
        Event { flow, ethertype: Be16::new(0x0800), ..Event::default() }
    }

    fn filter(change: impl Fn(&mut Listening)) -> Listening {
        let mut filter = Listening::EVERYTHING;
        change(&mut filter);
        assert!(filter.is_filter());
        filter
    }

    #[test]
    fn each_part_of_a_filter_decides() {
        let pod = Addr::from_v4([10, 244, 1, 2]);
        let wanted = event([10, 244, 1, 2], 40000, 6);
        let of_address = filter(|filter| (filter.address_count, filter.addresses[0]) = (1, pod));
        let of_port = filter(|filter| (filter.port_count, filter.ports[0]) = (1, Be16::new(40000)));
        let of_protocol = filter(|filter| filter.protocols = [1 << 6, 0, 0, 0]);
        let of_family = filter(|filter| filter.families = FAMILY_BIT_IPV4);
        let rows = [
            (of_address, event([10, 244, 1, 3], 40000, 6)),
            (of_port, event([10, 244, 1, 2], 40001, 6)),
            (of_protocol, event([10, 244, 1, 2], 40000, 70)),
            (of_family, Event { ethertype: Be16::new(0x86dd), ..wanted }),
        ];
        for (filter, other) in rows {
            assert!(filter.wants_packet(&wanted), "{filter:?}");
            assert!(!filter.wants_packet(&other), "{filter:?}");
        }
        // An address that is left over from an earlier filter does not count.
        let mut left = of_address;
        left.addresses = [Addr::from_v4([10, 244, 1, 9]), pod, pod, pod];
        assert!(!left.wants_packet(&event([10, 244, 1, 2], 40000, 6)));
        // Either end counts, also behind a translation and inside a tunnel packet.
        let behind = Event { translated: wanted.flow, ..event([10, 244, 1, 3], 1, 6) };
        let inside = Event { inner: wanted.flow, ..event([10, 244, 1, 3], 1, 17) };
        for event in [behind, inside] {
            assert!(of_address.wants_packet(&event) && of_port.wants_packet(&event));
        }
        assert!(of_protocol.wants_packet(&inside));
    }

    #[test]
    fn without_a_listener_only_drops_are_wanted() {
        assert!(Listening::NOBODY.wants_drop(4) && Listening::NOBODY.kinds & VERDICTS == 0);
        let mut wanted = Listening::EVERYTHING;
        wanted.reasons = 1 << 4;
        assert!(wanted.wants_drop(4) && !wanted.wants_drop(5));
        wanted.kinds = VERDICTS;
        assert!(!wanted.wants_drop(4));
    }
}
