//! IPv6 frames for the packet tables.

use std::net::Ipv6Addr;

use etherparse::EtherType;
use podwire_common::flow::protocol;
use podwire_common::names::{VNI, VXLAN_PORT};

use crate::packets::{Transport, ethernet};

/// An IPv6 packet in an Ethernet frame, which a test can vary before it is built.
#[derive(Clone, Debug)]
pub struct Packet6 {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    pub hop_limit: u8,
    pub traffic_class: u8,
    pub extensions: Vec<Extension>,
    pub transport: Transport,
    pub payload: Vec<u8>,
}

/// An extension header.
#[derive(Clone, Debug)]
pub struct Extension {
    pub kind: u8,
    /// Everything after the number of the next header.
    pub rest: Vec<u8>,
}

impl Extension {
    /// Returns a header of 8 bytes with padding only.
    pub fn of(kind: u8) -> Self {
        let rest = match kind {
            // Reserved, the index of parameters, a sequence number: 12 bytes.
            protocol::AH => vec![1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1],
            // The option PadN.
            _ => vec![0, 1, 4, 0, 0, 0, 0],
        };
        Self { kind, rest }
    }

    /// Returns a fragment header. `offset`: in units of 8 bytes.
    pub fn fragment(offset: u16, has_more: bool, identification: u32) -> Self {
        let field = (offset << 3 | u16::from(has_more)).to_be_bytes();
        let rest = [&[0], &field[..], &identification.to_be_bytes()].concat();
        Self { kind: protocol::FRAGMENT, rest }
    }
}

impl Packet6 {
    /// Returns a packet from one address to another, with link addresses 0.
    pub fn new(source: Ipv6Addr, destination: Ipv6Addr, transport: Transport) -> Self {
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            source,
            destination,
            hop_limit: 64,
            traffic_class: 0,
            extensions: Vec::new(),
            transport,
            payload: b"podwire!".to_vec(),
        }
    }

    pub fn macs(mut self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.destination_mac = destination;
        self.source_mac = source;
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Returns the frame.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = ethernet(self.destination_mac, self.source_mac, EtherType::IPV6);
        frame.extend(self.ip());
        frame
    }

    /// Returns the frame after a node has forwarded it: with other link addresses and a lower hop
    /// limit.
    pub fn forwarded(&self, destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
        self.clone().macs(destination, source).with(|packet| packet.hop_limit -= 1).build()
    }

    fn ip(&self) -> Vec<u8> {
        let mut next = self.protocol();
        let mut after = self.transport();
        for extension in self.extensions.iter().rev() {
            after = [&[next], &extension.rest[..], &after].concat();
            next = extension.kind;
        }
        let class = self.traffic_class;
        let mut header = vec![0x60 | class >> 4, class << 4, 0, 0];
        header.extend((after.len() as u16).to_be_bytes());
        header.extend([next, self.hop_limit]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(after);
        header
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } | Transport::Reset { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            Transport::None(protocol) => protocol,
            _ => protocol::ICMPV6,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports =
            |source: u16, destination: u16| [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let length = self.payload.len() as u16;
        let (header, checksum_at) = match self.transport {
            Transport::Tcp { source, destination, flags } => {
                let rest = [0, 0, 3, 0xe8, 0, 0, 0, 0, 0x50, flags, 0xfd, 0xe8, 0, 0, 0, 0];
                ([&ports(source, destination)[..], &rest].concat(), 16)
            }
            Transport::Reset { source, destination, acknowledged } => {
                let rest = [&[0; 4], &acknowledged.to_be_bytes()[..], &[0x50, 0x14], &[0; 6]].concat();
                ([ports(source, destination), rest].concat(), 16)
            }
            Transport::Udp { source, destination, .. } => {
                let rest = [(length + 8).to_be_bytes(), [0, 0]].concat();
                ([ports(source, destination), rest].concat(), 6)
            }
            Transport::EchoRequest { identifier } => {
                ([&[128, 0, 0, 0], &identifier.to_be_bytes()[..], &[0, 1]].concat(), 2)
            }
            Transport::EchoReply { identifier } => {
                ([&[129, 0, 0, 0], &identifier.to_be_bytes()[..], &[0, 1]].concat(), 2)
            }
            Transport::Icmp { kind, code, word } => ([&[kind, code, 0, 0], &word[..]].concat(), 2),
            _ => return self.payload.clone(),
        };
        let mut bytes = [&header[..], &self.payload].concat();
        if matches!(self.transport, Transport::Udp { checksum: false, .. }) {
            return bytes;
        }
        let checksum = self.checksum(&bytes).to_be_bytes();
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum);
        bytes
    }

    /// Returns the checksum over the pseudo header and the transport (RFC 8200 section 8.1).
    fn checksum(&self, transport: &[u8]) -> u16 {
        let length = (transport.len() as u32).to_be_bytes();
        let pseudo =
            [&self.source.octets()[..], &self.destination.octets(), &length, &[0, 0, 0, self.protocol()]]
                .concat();
        let all = [pseudo, transport.to_vec(), vec![0; transport.len() % 2]].concat();
        let mut sum: u32 = all.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

/// Returns a tunnel packet over IPv6 around a frame, with a zero UDP checksum (RFC 6935).
pub fn over_ipv6(source: Ipv6Addr, destination: Ipv6Addr, port: u16, frame: &[u8]) -> Packet6 {
    let vni = VNI.to_be_bytes();
    let transport = Transport::Udp { source: port, destination: VXLAN_PORT, checksum: false };
    Packet6::new(source, destination, transport)
        .with(|packet| packet.payload = [&[8, 0, 0, 0, vni[1], vni[2], vni[3], 0], frame].concat())
}
