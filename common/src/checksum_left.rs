//! A transport checksum that a sender leaves to the kernel. The kernel writes it after every
//! program has seen the packet, when the packet leaves by a link that cannot compute it.

use crate::flow::protocol;

/// Bytes of a UDP header.
const UDP_HEADER: u16 = 8;

/// Where the kernel writes a checksum, and where its sum begins.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct ChecksumLeft {
    /// The first byte that is summed, counted from the beginning of the frame.
    pub start: u16,
    /// Where the sum is written, counted from [`Self::start`].
    pub offset: u16,
    /// Whether the kernel calls the packet encapsulated: a tunnel device of the sender made it, and
    /// the checksum is the inner packet's. A packet socket cannot set this.
    pub is_encapsulated: bool,
}

impl ChecksumLeft {
    /// Returns whether the kernel writes the sum where no program reads: into the packet's own TCP,
    /// UDP or SCTP checksum, or into the encapsulated packet behind all headers.
    ///
    /// `transport` is where the transport header begins in the frame. The packet must not be a
    /// fragment: the kernel completes a checksum before it fragments a packet.
    #[inline(always)]
    pub const fn is_own(self, protocol: u8, transport: u16) -> bool {
        let place = match protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::SCTP => 8,
            // The programs read the quote of an ICMP error, whatever packet it quotes.
            protocol::ICMP | protocol::ICMPV6 => return false,
            _ => return self.is_encapsulated && self.start >= transport,
        };
        if self.start == transport && self.offset == place {
            return true;
        }
        protocol == protocol::UDP && self.is_encapsulated && self.start >= transport + UDP_HEADER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const TRANSPORT: u16 = 34;

    fn own(protocol: u8, is_encapsulated: bool) -> Vec<(u16, u16)> {
        let places = (0..80).flat_map(|start| (0..40).map(move |offset| (start, offset)));
        places
            .filter(|&(start, offset)| {
                ChecksumLeft { start, offset, is_encapsulated }.is_own(protocol, TRANSPORT)
            })
            .collect()
    }

    #[test]
    fn a_packet_has_one_checksum_of_its_own() {
        assert_eq!(own(protocol::TCP, false), [(TRANSPORT, 16)]);
        assert_eq!(own(protocol::UDP, false), [(TRANSPORT, 6)]);
        assert_eq!(own(protocol::SCTP, false), [(TRANSPORT, 8)]);
        for protocol in [protocol::ICMP, 4, 41, 47, 50] {
            assert_eq!(own(protocol, false), []);
        }
    }

    #[test]
    fn a_tunnel_leaves_only_what_is_behind_its_headers() {
        assert_eq!(own(protocol::TCP, true), [(TRANSPORT, 16)]);
        assert_eq!(own(protocol::ICMP, true), []);
        let udp = own(protocol::UDP, true);
        assert!(udp.iter().all(|place| *place == (TRANSPORT, 6) || place.0 >= TRANSPORT + UDP_HEADER));
        assert!(udp.contains(&(TRANSPORT + UDP_HEADER, 0)));
        assert!(own(47, true).iter().all(|place| place.0 >= TRANSPORT));
        assert!(own(4, true).contains(&(TRANSPORT + 20, 16)));
    }
}
