//! The records that the programs write to the ring `EVENTS`.

use crate::abi::plain;
use crate::addr::{Addr, Be16};

/// The version of [`Event`]. It changes with any change of the record.
pub const VERSION: u8 = 1;

/// What happened to one packet. The addresses and ports are those that the packet had when the
/// programs decided.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Event {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The packet's source. Zeros if the packet is not IP.
    pub source: Addr,
    /// The packet's destination. Zeros if the packet is not IP.
    pub destination: Addr,
    /// The link that the hook is on (ifindex).
    pub link: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Source port; the identifier of an ICMP request or reply. Zero if there is none.
    pub source_port: Be16,
    /// Destination port; the identifier of an ICMP request or reply. Zero if there is none.
    pub destination_port: Be16,
    /// EtherType of the frame.
    pub ethertype: Be16,
    /// The number of the reason or of the path.
    pub outcome: u16,
    /// [`VERSION`] of the programs.
    pub version: u8,
    /// One of [`Kind`].
    pub kind: u8,
    /// One of [`Hook`](crate::reason::Hook).
    pub hook: u8,
    /// Protocol number of the transport. Zero if it is not known.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 4],
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
}

/// What an event is about.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A dropped packet. [`Event::outcome`] is a [`Drop`](crate::reason::Drop).
    Drop = 1,
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

/// Bytes of the ring, a power of two of pages.
pub const RING_BYTES: usize = 256 << 10;

plain! {
    Event: 64,
    Budget: 24,
}
