//! A transport checksum that a sender leaves to the kernel: the kernel writes it when the packet
//! leaves by a link that cannot, after every program has seen the packet.

use crate::flow::protocol;

/// Bytes of a UDP header.
const UDP_HEADER: u16 = 8;

/// Where the kernel writes a checksum, and from where on it sums.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct ChecksumLeft {
    /// The first byte that is summed, from the beginning of the frame.
    pub start: u16,
    /// Where the sum is written, from [`Self::start`].
    pub offset: u16,
    /// Whether the kernel calls the packet encapsulated: a tunnel device of the sender's made it,
    /// and the checksum is the inner packet's. No packet socket can say so.
    pub is_encapsulated: bool,
}

impl ChecksumLeft {
    /// Whether the sum goes where no program looks: into the packet's own TCP, UDP or SCTP
    /// checksum, or behind all headers into what the packet encapsulates. `transport` is where the
    /// transport header begins in the frame; the packet is no fragment, since the kernel completes
    /// a checksum before it cuts a packet.
    #[inline(always)]
    pub const fn is_own(self, protocol: u8, transport: u16) -> bool {
        let place = match protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            protocol::SCTP => 8,
            // Whatever its quote is of, it is read.
            protocol::ICMP => return false,
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
