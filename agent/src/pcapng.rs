//! Files of packets in the format pcapng (draft-ietf-opsawg-pcapng): the three kinds of blocks that
//! a capture needs. Wireshark and tcpdump read them.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// Types of blocks (section 11.1).
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
/// Options (sections 3.5, 4.2 and 4.3).
const COMMENT: u16 = 1;
const INTERFACE_NAME: u16 = 2;
const PACKET_FLAGS: u16 = 2;
const TIME_RESOLUTION: u16 = 9;
/// Says in which byte order the section is: little-endian.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// Link types: `LINKTYPE_ETHERNET`, `LINKTYPE_RAW`.
const ETHERNET: u16 = 1;
const RAW: u16 = 101;

/// The way of a packet at its link, as the format numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the host.
    Inbound = 1,
    /// Out of the host.
    Outbound = 2,
}

/// A packet for the file.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Name of the link.
    pub link: &'a str,
    /// Whether the packet begins with its link header.
    pub has_link_header: bool,
    /// Nanoseconds since 1970-01-01 UTC.
    pub time: u64,
    /// The packet's way at the link.
    pub direction: Direction,
    /// A text for people.
    pub comment: &'a str,
    /// Bytes of the whole packet.
    pub length: u32,
    /// Its first bytes.
    pub data: &'a [u8],
}

/// Writes a file of packets.
pub struct Writer<W: Write> {
    out: W,
    /// Number of each link in the file.
    links: BTreeMap<String, u32>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, links: BTreeMap::new() };
        let mut body = BYTE_ORDER.to_le_bytes().to_vec();
        body.extend([1_u16.to_le_bytes(), 0_u16.to_le_bytes()].concat());
        // The length of the section is not known.
        body.extend(u64::MAX.to_le_bytes());
        writer.block(SECTION_HEADER, &body)?;
        Ok(writer)
    }

    /// Adds a packet, and before its first packet the link.
    ///
    /// # Errors
    /// Those of the output.
    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let link = match self.links.get(packet.link) {
            Some(link) => *link,
            None => self.link(packet)?,
        };
        let captured = u32::try_from(packet.data.len()).unwrap_or(u32::MAX);
        let (upper, lower) = ((packet.time >> 32) as u32, packet.time as u32);
        let numbers = [link, upper, lower, captured, packet.length];
        let mut body: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        body.extend(packet.data);
        pad(&mut body);
        option(&mut body, COMMENT, packet.comment.as_bytes());
        option(&mut body, PACKET_FLAGS, &(packet.direction as u32).to_le_bytes());
        option(&mut body, 0, &[]);
        self.block(ENHANCED_PACKET, &body)?;
        self.out.flush()
    }

    fn link(&mut self, packet: &Packet<'_>) -> io::Result<u32> {
        let number = u32::try_from(self.links.len()).unwrap_or(u32::MAX);
        let kind = if packet.has_link_header { ETHERNET } else { RAW };
        let mut body = [kind.to_le_bytes(), [0; 2]].concat();
        // No limit: the programs decide how many bytes they copy.
        body.extend(0_u32.to_le_bytes());
        option(&mut body, INTERFACE_NAME, packet.link.as_bytes());
        // Nanoseconds: 10 to the power of -9 seconds.
        option(&mut body, TIME_RESOLUTION, &[9]);
        option(&mut body, 0, &[]);
        self.block(INTERFACE_DESCRIPTION, &body)?;
        self.links.insert(packet.link.to_owned(), number);
        Ok(number)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
        self.out.write_all(&[&kind.to_le_bytes(), &length, body, &length].concat())
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

/// Every part begins at a multiple of four bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_their_length_at_both_ends() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).unwrap();
        let packet = Packet {
            link: "eth0",
            has_link_header: true,
            time: 1_700_000_000_123_456_789,
            direction: Direction::Outbound,
            comment: "to_uplink",
            length: 1514,
            data: &[1, 2, 3, 4, 5],
        };
        writer.packet(&packet).unwrap();
        writer.packet(&Packet { link: "tun0", has_link_header: false, ..packet }).unwrap();
        writer.packet(&packet).unwrap();
        let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        let (mut at, mut kinds) = (0, Vec::new());
        while at < file.len() {
            let length = number(at + 4) as usize;
            assert_eq!(number(at + length - 4) as usize, length);
            kinds.push(number(at));
            at += length;
        }
        let [section, link, packet] = [SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET];
        assert_eq!(kinds, [section, link, packet, link, packet, packet], "a link is described once");
    }
}
