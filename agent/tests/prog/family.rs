//! What tests need of a family of IP, so that one test checks IPv4 and IPv6.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire::dataplane::maps::Maps;
use podwire_common::abi::{FAMILY_IPV6, KnownFlow, NextHop};
use podwire_common::addr::{Addr, Quad};
use podwire_common::flow::{FlowAddr, protocol};

use crate::fixture;
use crate::fixture6;
use crate::packets::{ETHERNET, Packet, Transport};
use crate::packets6::{Extension, Packet6};

/// What the programs know of a flow of a family.
pub type Known<A> = KnownFlow<<A as Address>::Stored>;
/// The key of a family's table of known flows.
pub type Key<A> = <<A as Address>::Stored as FlowAddr>::Key;

/// An address, which stands for its family: the node of these tests has pods, neighbours and known
/// flows of both families.
pub trait Address: Copy + Debug + PartialEq + Into<Addr> + Into<IpAddr> + 'static {
    /// A packet of the family.
    type Packet: IpPacket<Address = Self>;
    /// An address in the family's table of known flows.
    type Stored: FlowAddr<Key: Debug + PartialEq> + Debug + PartialEq;

    const NODE1: Self;
    const NODE2: Self;
    const NODE3: Self;
    const STRANGER: Self;
    const WORLD: Self;
    const POD_A: Self;
    const POD_B: Self;
    const REMOTE_POD: Self;
    /// A service's address, which only the host's rules know.
    const SERVICE: Self;
    /// An address beside [`Self::SERVICE`] that no service has.
    const UNUSED: Self;

    /// Returns the value of the family.
    fn either<T>(v4: T, v6: T) -> T;
    /// Returns the entry of a known flow, whether it counts or not.
    fn known(maps: &Maps, key: &Key<Self>) -> Option<Known<Self>>;
    /// Adds or replaces the entry of a known flow.
    fn insert_known(maps: &mut Maps, key: &Key<Self>, known: Known<Self>);
    /// Returns all known flows of the family.
    fn all_known(maps: &Maps) -> Vec<(Key<Self>, Known<Self>)>;
}

macro_rules! operations {
    ($table:ident) => {
        fn known(maps: &Maps, key: &Key<Self>) -> Option<Known<Self>> {
            maps.$table.get(key, 0).ok()
        }

        fn insert_known(maps: &mut Maps, key: &Key<Self>, known: Known<Self>) {
            maps.$table.insert(key, known, 0).unwrap();
        }

        fn all_known(maps: &Maps) -> Vec<(Key<Self>, Known<Self>)> {
            maps.$table.iter().map(Result::unwrap).collect()
        }
    };
}

impl Address for Ipv4Addr {
    type Packet = Packet;
    type Stored = Quad;

    const NODE1: Self = fixture::NODE1;
    const NODE2: Self = fixture::NODE2;
    const NODE3: Self = fixture::NODE3;
    const STRANGER: Self = fixture::STRANGER;
    const WORLD: Self = fixture::WORLD;
    const POD_A: Self = fixture::POD_A;
    const POD_B: Self = fixture::POD_B;
    const REMOTE_POD: Self = fixture::REMOTE_POD;
    const SERVICE: Self = Self::new(10, 96, 0, 1);
    const UNUSED: Self = Self::new(10, 96, 0, 2);

    fn either<T>(v4: T, _: T) -> T {
        v4
    }

    operations!(flows);
}

impl Address for Ipv6Addr {
    type Packet = Packet6;
    type Stored = Addr;

    const NODE1: Self = fixture6::NODE1_6;
    const NODE2: Self = fixture6::NODE2_6;
    const NODE3: Self = fixture6::NODE3_6;
    const STRANGER: Self = fixture6::STRANGER6;
    const WORLD: Self = fixture6::WORLD6;
    const POD_A: Self = fixture6::POD;
    const POD_B: Self = fixture6::NEIGHBOUR;
    const REMOTE_POD: Self = fixture6::REMOTE;
    const SERVICE: Self = Self::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1);
    const UNUSED: Self = Self::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 2);

    fn either<T>(_: T, v6: T) -> T {
        v6
    }

    operations!(flows6);
}

/// The fields that packets of both families have.
pub struct Fields<'a, A> {
    pub destination_mac: &'a mut [u8; 6],
    pub source_mac: &'a mut [u8; 6],
    pub source: &'a mut A,
    pub destination: &'a mut A,
    pub ttl: &'a mut u8,
    pub traffic_class: &'a mut u8,
    pub transport: &'a mut Transport,
    pub payload: &'a mut Vec<u8>,
}

/// A packet of a family, in an Ethernet frame.
pub trait IpPacket: Clone {
    type Address: Address<Packet = Self>;

    /// Bytes of the IP header.
    const HEADER: usize;
    /// Offset of the length in a frame, and the bytes of the IP header that the length includes.
    const LENGTH: (usize, u16);

    /// Returns a packet from one address to another, with link addresses 0.
    fn new(source: Self::Address, destination: Self::Address, transport: Transport) -> Self;
    /// Returns the frame.
    fn build(&self) -> Vec<u8>;
    /// Returns the fields, to be changed.
    fn fields(&mut self) -> Fields<'_, Self::Address>;
    /// Returns the first and the last fragment of a datagram of UDP.
    fn fragments(self) -> [Self; 2];
    /// Returns variations with headers that a plain packet does not have. `ports`: the packet's.
    fn odd(&self, ports: (u16, u16)) -> Vec<(&'static str, Self)>;

    /// Returns the packet as a program would send it itself.
    fn of_program(self) -> Self;

    /// Returns the packet with other fields.
    fn set(mut self, change: impl FnOnce(Fields<'_, Self::Address>)) -> Self {
        change(self.fields());
        self
    }

    /// Returns the packet with these link addresses.
    fn on_link(self, destination: [u8; 6], source: [u8; 6]) -> Self {
        self.set(|fields| (*fields.destination_mac, *fields.source_mac) = (destination, source))
    }
}

macro_rules! fields {
    ($packet:ident, $ttl:ident) => {
        Fields {
            destination_mac: &mut $packet.destination_mac,
            source_mac: &mut $packet.source_mac,
            source: &mut $packet.source,
            destination: &mut $packet.destination,
            ttl: &mut $packet.$ttl,
            traffic_class: &mut $packet.traffic_class,
            transport: &mut $packet.transport,
            payload: &mut $packet.payload,
        }
    };
}

impl IpPacket for Packet {
    type Address = Ipv4Addr;

    const HEADER: usize = 20;
    const LENGTH: (usize, u16) = (ETHERNET + 2, 20);

    fn new(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Self {
        Self::new(source, destination, transport)
    }

    fn build(&self) -> Vec<u8> {
        self.build()
    }

    fn fields(&mut self) -> Fields<'_, Ipv4Addr> {
        fields!(self, ttl)
    }

    fn fragments(self) -> [Self; 2] {
        let cut = |packet: &mut Self, fragment| {
            (packet.dont_fragment, packet.fragment) = (false, fragment);
        };
        let last = self.clone().with(|packet| packet.transport = Transport::None(protocol::UDP));
        [self.with(|packet| cut(packet, (0, true))), last.with(|packet| cut(packet, (2, false)))]
    }

    fn odd(&self, (source, destination): (u16, u16)) -> Vec<(&'static str, Self)> {
        let options = |options| self.clone().with(|packet| packet.options = options);
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        vec![
            ("IP options", options(vec![1; 4])),
            ("IP options in the place of its ports", options(ports)),
            ("a first fragment", self.clone().with(|packet| packet.fragment = (0, true))),
        ]
    }

    fn of_program(self) -> Self {
        self.with(|packet| (packet.dont_fragment, packet.identification) = (false, 0))
    }
}

impl IpPacket for Packet6 {
    type Address = Ipv6Addr;

    const HEADER: usize = 40;
    const LENGTH: (usize, u16) = (ETHERNET + 4, 0);

    fn new(source: Ipv6Addr, destination: Ipv6Addr, transport: Transport) -> Self {
        Self::new(source, destination, transport)
    }

    fn build(&self) -> Vec<u8> {
        self.build()
    }

    fn fields(&mut self) -> Fields<'_, Ipv6Addr> {
        fields!(self, hop_limit)
    }

    fn fragments(self) -> [Self; 2] {
        let behind = |packet: Self, extension| packet.with(|packet| packet.extensions = vec![extension]);
        let last = self.clone().with(|packet| packet.transport = Transport::None(protocol::UDP));
        [behind(self, Extension::fragment(0, true, 1)), behind(last, Extension::fragment(2, false, 1))]
    }

    fn odd(&self, _: (u16, u16)) -> Vec<(&'static str, Self)> {
        let behind = |extension| self.clone().with(|packet| packet.extensions = vec![extension]);
        vec![
            ("hop-by-hop options", behind(Extension::of(protocol::HOP_BY_HOP))),
            ("options for the destination", behind(Extension::of(protocol::DESTINATION_OPTIONS))),
            ("a first fragment", behind(Extension::fragment(0, true, 1))),
            ("an atomic fragment", behind(Extension::fragment(0, false, 2))),
        ]
    }

    fn of_program(self) -> Self {
        self
    }
}

/// Returns whether a program can take a packet of the family out of the tunnel, which is of IPv4.
/// Otherwise the VXLAN device does it.
pub fn can_leave_tunnel<A: Address>() -> bool {
    A::either(true, fixture6::takes_off_other_families())
}

/// Returns the neighbour that the kernel sends packets to, in the kernel's form.
pub fn next_hop(address: impl Into<Addr>) -> NextHop {
    let address = address.into();
    if address.is_v4() {
        NextHop::v4(address.v4())
    } else {
        NextHop { family: FAMILY_IPV6, address: address.words() }
    }
}
