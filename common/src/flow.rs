//! 5-tuples and what follows from them.

use core::borrow::Borrow;

use crate::abi::{Flow, FlowKey, NODE_LOCAL};
use crate::addr::{Addr, Be16, Quad};

/// IP protocol numbers (IANA).
pub mod protocol {
    /// IPv6's extension header of hop-by-hop options (RFC 8200 section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6's extension header for routing (RFC 8200 section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6's extension header of fragments (RFC 8200 section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// The authentication header (RFC 4302).
    pub const AH: u8 = 51;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// IPv6's extension header of options for the destination (RFC 8200 section 4.6).
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite (RFC 3828).
    pub const UDP_LITE: u8 = 136;
}

/// A flag in [`FlowKey::protocol`], above every protocol number.
const ANY_SOURCE_PORT: u32 = 0x100;

/// An address as in the tables of known flows: [`Quad`] for IPv4 in `FLOWS`, [`Addr`] for IPv6 in
/// `FLOWS6`.
pub trait FlowAddr: Copy {
    /// Whether the family is IPv4.
    const IS_IPV4: bool;
    /// The 5-tuple as a key of the table.
    type Key: Copy;
    /// The key, or a reference to a flow that is its own key: a copy would take stack.
    type KeyOf<'a>: Borrow<Self::Key>;

    /// Returns the form of an address of the family.
    fn of(address: &Addr) -> Self;
    /// Returns the address.
    fn address(&self) -> Addr;
    /// Returns the key of a flow of the family.
    fn key(flow: &Flow) -> Self::KeyOf<'_>;
    /// Returns the key of the entry for all of a pod's connections to one address and port. No
    /// single flow has this key.
    fn destination_key(flow: &Flow) -> Self::Key;
}

impl FlowAddr for Quad {
    const IS_IPV4: bool = true;
    type Key = FlowKey;
    type KeyOf<'a> = FlowKey;

    #[inline(always)]
    fn of(address: &Addr) -> Self {
        Self::of(address)
    }

    #[inline(always)]
    fn address(&self) -> Addr {
        Addr::from_v4(self.bytes)
    }

    #[inline(always)]
    fn key(flow: &Flow) -> FlowKey {
        flow.key()
    }

    #[inline(always)]
    fn destination_key(flow: &Flow) -> FlowKey {
        flow.destination_key()
    }
}

impl FlowAddr for Addr {
    const IS_IPV4: bool = false;
    type Key = Flow;
    type KeyOf<'a> = &'a Flow;

    #[inline(always)]
    fn of(address: &Addr) -> Self {
        *address
    }

    #[inline(always)]
    fn address(&self) -> Addr {
        *self
    }

    #[inline(always)]
    fn key(flow: &Flow) -> &Flow {
        flow
    }

    #[inline(always)]
    fn destination_key(flow: &Flow) -> Flow {
        Flow { source_port: Be16::ZERO, reserved: [1, 0, 0], ..*flow }
    }
}

/// Returns whether packets to an address may go past the host stack: the address belongs to a pod
/// of this node or to another node.
///
/// `node_flags` returns the flags of the node that owns the address. This function calls it only if
/// no pod of this node has the address.
///
/// # Errors
/// The errors of `node_flags`.
#[inline(always)]
pub fn can_go_direct<E>(
    is_pod_here: bool,
    node_flags: impl FnOnce() -> Result<Option<u32>, E>,
) -> Result<bool, E> {
    Ok(is_pod_here || node_flags()?.is_some_and(|flags| flags & NODE_LOCAL == 0))
}

impl Flow {
    /// Makes a flow of any protocol.
    #[inline(always)]
    pub const fn new(
        source: Addr,
        destination: Addr,
        source_port: Be16,
        destination_port: Be16,
        protocol: u8,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol, reserved: [0; 3] }
    }

    /// Returns the ports in the order in which they are in a packet.
    #[inline(always)]
    pub const fn ports(&self) -> [Be16; 2] {
        [self.source_port, self.destination_port]
    }

    /// Returns the flow of the replies.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self::new(self.destination, self.source, self.destination_port, self.source_port, self.protocol)
    }

    /// Returns the compact form of an IPv4 flow: its key in `FLOWS`.
    #[inline(always)]
    pub const fn key(&self) -> FlowKey {
        FlowKey {
            source: Quad::of(&self.source),
            destination: Quad::of(&self.destination),
            source_port: self.source_port,
            destination_port: self.destination_port,
            protocol: self.protocol as u32,
        }
    }

    /// Returns the compact form of [`FlowAddr::destination_key`].
    #[inline(always)]
    pub const fn destination_key(&self) -> FlowKey {
        let key = self.key();
        FlowKey { source_port: Be16::ZERO, protocol: key.protocol | ANY_SOURCE_PORT, ..key }
    }

    /// Returns whether this is the key of an entry for all of a pod's connections to one address
    /// and port ([`FlowAddr::destination_key`]).
    pub const fn is_destination_key(&self) -> bool {
        self.reserved[0] != 0
    }

    /// Returns a source port for the tunnel's outer header, so that underlay routers and NICs
    /// spread flows (RFC 7348 section 5). It lies in the dynamic range and is the same for every
    /// packet of one direction.
    #[inline(always)]
    pub fn tunnel_source_port(&self) -> Be16 {
        let ports = u32::from_ne_bytes([
            self.source_port.bytes[0],
            self.source_port.bytes[1],
            self.destination_port.bytes[0],
            self.destination_port.bytes[1],
        ]);
        let mut hash = self.source.v4_be32().rotate_left(7) ^ self.destination.v4_be32();
        hash ^= ports.rotate_left(13) ^ u32::from(self.protocol);
        // Finalizer of MurmurHash3: every input bit reaches the upper ones.
        hash ^= hash >> 16;
        hash = hash.wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 13;
        hash = hash.wrapping_mul(0xc2b2_ae35);
        hash ^= hash >> 16;
        Be16::new(0xc000 | (hash & 0x3fff) as u16)
    }
}

impl FlowKey {
    /// Returns the same key in the form of `FLOWS6`.
    pub const fn flow(&self) -> Flow {
        let (source, destination) = (self.source.address(), self.destination.address());
        let protocol = self.protocol as u8;
        let flow = Flow::new(source, destination, self.source_port, self.destination_port, protocol);
        let is_any = self.protocol & ANY_SOURCE_PORT != 0;
        Flow { reserved: [is_any as u8, 0, 0], ..flow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn flow(source: [u8; 4], destination: [u8; 4], ports: (u16, u16)) -> Flow {
        Flow::new(
            Addr::from_v4(source),
            Addr::from_v4(destination),
            Be16::new(ports.0),
            Be16::new(ports.1),
            protocol::TCP,
        )
    }

    proptest! {
        #[test]
        fn reversing_twice_changes_nothing(a in any::<[u8; 4]>(), b in any::<[u8; 4]>(), ports in any::<(u16, u16)>()) {
            let flow = flow(a, b, ports);
            prop_assert_eq!(flow.reversed().reversed(), flow);
        }

        #[test]
        fn the_tunnel_source_port_is_dynamic(a in any::<[u8; 4]>(), b in any::<[u8; 4]>(), ports in any::<(u16, u16)>()) {
            prop_assert!(flow(a, b, ports).tunnel_source_port().get() >= 49152);
        }
    }

    #[test]
    fn tunnel_source_ports_spread_over_flows() {
        let ports: BTreeSet<_> = (0..1000u16)
            .map(|port| flow([10, 244, 1, 2], [10, 244, 2, 2], (32768 + port, 80)).tunnel_source_port())
            .collect();
        assert!(ports.len() > 950, "{} of 1000 flows have a port of their own", ports.len());
    }
}
