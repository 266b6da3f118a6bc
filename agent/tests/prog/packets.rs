//! Frames for the packet tables, and the frames that a correct node makes of them.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header,
    Ipv4Options, TcpHeader, UdpHeader,
};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, VNI, VXLAN_PORT};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes of Ethernet, outer IPv4, UDP and VXLAN headers in front of an inner frame.
pub const OUTER: usize = ETHERNET + 20 + 8 + 8;

/// An IPv4 packet in an Ethernet frame, which a test can vary before it is built.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub ttl: u8,
    pub traffic_class: u8,
    pub dont_fragment: bool,
    pub options: Vec<u8>,
    pub identification: u16,
    /// Offset in 8-byte units, and whether more fragments follow.
    pub fragment: (u16, bool),
    pub transport: Transport,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    /// The reset that refuses a connection.
    Reset {
        source: u16,
        destination: u16,
        acknowledged: u32,
    },
    Udp {
        source: u16,
        destination: u16,
        checksum: bool,
    },
    EchoRequest {
        identifier: u16,
    },
    EchoReply {
        identifier: u16,
    },
    /// Any ICMP message: type, code and second word. The payload is the quoted packet.
    Icmp {
        kind: u8,
        code: u8,
        word: [u8; 4],
    },
    /// A UDP-Lite datagram with a checksum that covers only the header.
    UdpLite {
        source: u16,
        destination: u16,
    },
    /// An SCTP packet with any checksum: an SCTP checksum covers no address.
    Sctp {
        source: u16,
        destination: u16,
    },
    /// A protocol without ports, or no transport header because the packet is a later fragment.
    None(u8),
}

impl Packet {
    /// Returns a packet from one address to another, with link addresses 0.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Self {
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            source,
            destination,
            ttl: 64,
            traffic_class: 0,
            dont_fragment: true,
            options: Vec::new(),
            identification: 0x1234,
            fragment: (0, false),
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
        let mut frame = ethernet(self.destination_mac, self.source_mac, EtherType::IPV4);
        frame.extend(self.ip());
        frame
    }

    /// Returns the frame after a node has forwarded it: with other link addresses and a lower TTL.
    pub fn forwarded(&self, destination: [u8; 6], source: [u8; 6]) -> Vec<u8> {
        self.clone().macs(destination, source).with(|packet| packet.ttl -= 1).build()
    }

    fn ip(&self) -> Vec<u8> {
        let transport = self.transport();
        let mut header = Ipv4Header::new(
            transport.len() as u16,
            self.ttl,
            self.protocol(),
            self.source.octets(),
            self.destination.octets(),
        )
        .unwrap();
        header.options = Ipv4Options::try_from(self.options.as_slice()).unwrap();
        header.set_payload_len(transport.len()).unwrap();
        header.dscp = (self.traffic_class >> 2).try_into().unwrap();
        header.ecn = (self.traffic_class & 3).try_into().unwrap();
        header.dont_fragment = self.dont_fragment;
        header.identification = self.identification;
        header.fragment_offset = IpFragOffset::try_new(self.fragment.0).unwrap();
        header.more_fragments = self.fragment.1;
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(transport);
        bytes
    }

    fn protocol(&self) -> IpNumber {
        match self.transport {
            Transport::Tcp { .. } | Transport::Reset { .. } => IpNumber::TCP,
            Transport::Udp { .. } => IpNumber::UDP,
            Transport::EchoRequest { .. } | Transport::EchoReply { .. } | Transport::Icmp { .. } => {
                IpNumber::ICMP
            }
            Transport::UdpLite { .. } => IpNumber(136),
            Transport::Sctp { .. } => IpNumber(132),
            Transport::None(protocol) => IpNumber(protocol),
        }
    }

    fn transport(&self) -> Vec<u8> {
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let mut bytes = match self.transport {
            Transport::Tcp { source: from, destination: to, flags } => {
                let mut header = TcpHeader::new(from, to, 1000, 65000);
                (header.fin, header.syn, header.rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
                header.ack = flags & 16 != 0;
                header.checksum = header.calc_checksum_ipv4_raw(source, destination, &self.payload).unwrap();
                header.to_bytes().to_vec()
            }
            Transport::Reset { source: from, destination: to, acknowledged } => {
                let mut header = TcpHeader::new(from, to, 0, 0);
                (header.rst, header.ack, header.acknowledgment_number) = (true, true, acknowledged);
                header.checksum = header.calc_checksum_ipv4_raw(source, destination, &self.payload).unwrap();
                header.to_bytes().to_vec()
            }
            Transport::Udp { source: from, destination: to, checksum } => {
                let mut header = UdpHeader::without_ipv4_checksum(from, to, self.payload.len()).unwrap();
                if checksum {
                    header.checksum =
                        header.calc_checksum_ipv4_raw(source, destination, &self.payload).unwrap();
                }
                header.to_bytes().to_vec()
            }
            Transport::EchoRequest { identifier } => self.icmp(Icmpv4Type::EchoRequest(echo(identifier))),
            Transport::EchoReply { identifier } => self.icmp(Icmpv4Type::EchoReply(echo(identifier))),
            Transport::Icmp { kind, code, word } => {
                self.icmp(Icmpv4Type::Unknown { type_u8: kind, code_u8: code, bytes5to8: word })
            }
            Transport::UdpLite { source: from, destination: to } => {
                const COVERAGE: [u8; 2] = [0, 8];
                let length = (8 + self.payload.len() as u16).to_be_bytes();
                let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
                let sum = Sum16BitWords::new().add_4bytes(source).add_4bytes(destination);
                let sum = sum.add_2bytes([0, 136]).add_2bytes(length);
                let sum = sum.add_2bytes(from).add_2bytes(to).add_2bytes(COVERAGE);
                let checksum = sum.ones_complement().to_be().to_be_bytes();
                [from, to, COVERAGE, checksum].concat()
            }
            Transport::Sctp { source: from, destination: to } => {
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                [&ports[..], &[1, 2, 3, 4], &[0xab; 4]].concat()
            }
            Transport::None(_) => Vec::new(),
        };
        bytes.extend(&self.payload);
        bytes
    }

    fn icmp(&self, kind: Icmpv4Type) -> Vec<u8> {
        Icmpv4Header::with_checksum(kind, &self.payload).to_bytes().to_vec()
    }
}

fn echo(id: u16) -> IcmpEchoHeader {
    IcmpEchoHeader { id, seq: 1 }
}

pub fn tcp(source: u16, destination: u16) -> Transport {
    Transport::Tcp { source, destination, flags: 2 }
}

pub fn udp(source: u16, destination: u16) -> Transport {
    Transport::Udp { source, destination, checksum: true }
}

/// Returns an Ethernet header.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: EtherType) -> Vec<u8> {
    Ethernet2Header { destination, source, ether_type }.to_bytes().to_vec()
}

/// Inserts an 802.1Q tag behind the link addresses of a frame.
pub fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

/// Returns "fragmentation needed" about a tunnel packet to node 2, addressed to that packet's
/// sender.
pub fn about_the_tunnel(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    let quoted = Packet::new(destination, [10, 200, 0, 2].into(), udp(50000, VXLAN_PORT));
    let needed = Transport::Icmp { kind: 3, code: 4, word: [0, 0, 2, 40] };
    Packet::new(source, destination, needed).with(|packet| packet.payload = behind_ethernet(&quoted.build()))
}

/// Returns an ARP request or reply.
pub fn arp(operation: u16, mac: [u8; 6], sender: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let destination = if operation == 1 { [0xff; 6] } else { target_mac };
    let mut frame = ethernet(destination, mac, EtherType::ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame
}

/// The outer headers of a VXLAN packet, which a test can vary before it is built around an inner
/// frame.
#[derive(Clone, Debug)]
pub struct Vxlan {
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub source_port: u16,
    pub vni: u32,
    pub flags: u8,
    pub traffic_class: u8,
    pub dont_fragment: bool,
    pub identification: u16,
    pub options: Vec<u8>,
    pub fragment: (u16, bool),
}

impl Vxlan {
    /// Returns the headers of a packet from one node to another.
    pub fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            source,
            destination,
            source_port: 50000,
            vni: VNI,
            flags: 8,
            traffic_class: 0,
            dont_fragment: true,
            identification: 0,
            options: Vec::new(),
            fragment: (0, false),
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Returns the whole frame around an inner one.
    pub fn around(&self, inner: &[u8]) -> Vec<u8> {
        let vni = self.vni.to_be_bytes();
        let mut payload = vec![self.flags, 0, 0, 0, vni[1], vni[2], vni[3], 0];
        payload.extend(inner);
        Packet::new(
            self.source,
            self.destination,
            Transport::Udp { source: self.source_port, destination: VXLAN_PORT, checksum: false },
        )
        .macs(self.destination_mac, self.source_mac)
        .with(|packet| {
            packet.payload = payload;
            packet.traffic_class = self.traffic_class;
            packet.dont_fragment = self.dont_fragment;
            packet.identification = self.identification;
            packet.options.clone_from(&self.options);
            packet.fragment = self.fragment;
        })
        .build()
    }
}

/// Returns an inner frame as the programs write it.
pub fn inner(packet: &Packet) -> Vec<u8> {
    packet.clone().macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC).build()
}

/// Returns a frame without its Ethernet header.
pub fn behind_ethernet(frame: &[u8]) -> Vec<u8> {
    frame[ETHERNET..].to_vec()
}
