//! Keys and values of the pinned maps, and the constants that user space writes into the object at
//! load.
//!
//! Every type has a fixed width and explicit padding. Padding that the compiler chose would break
//! key comparison. No field is a `bool` or an `enum`: an unexpected byte would be an invalid value
//! of such a type.

use crate::addr::{Addr, Be16, LpmAddr, Mac, Quad};
use crate::epoch::FLOW_SLOTS;
use crate::flow::FlowAddr;
use crate::reason::Drop;

/// The layout of all pinned maps together. Its number lies beside the pins. An agent takes over the
/// maps of an earlier layout and refuses those of a later one.
///
/// A release that changes a table's keys or values increments this, gives the table the new number
/// in [`Table::layout`](crate::tables::Table::layout), and adds a conversion to the agent.
pub const SCHEMA_VERSION: u32 = if cfg!(feature = "earlier-layout") { 0 } else { 1 };
/// Bytes by which entries are larger in the artificial layout 0, from which tests upgrade.
const EARLIER: usize = if cfg!(feature = "earlier-layout") { 8 } else { 0 };

/// `ENDPOINTS`: pod address → how to reach that pod on this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Endpoint {
    /// Reserved in the artificial layout 0.
    #[cfg(feature = "earlier-layout")]
    pub earlier: [u8; 8],
    /// The host side of the pod's veth pair (ifindex).
    pub ifindex: u32,
    /// The agent's number for the endpoint; unique on the node while the endpoint lives.
    pub id: u32,
    /// `ENDPOINT_*` bits.
    pub flags: u32,
    /// The largest IP packet that the pod's link takes, bytes.
    pub mtu: u32,
    /// The pod's own address on its link: the only source that the pod may use.
    pub pod_mac: Mac,
    /// The host side's address, which is the gateway's for the pod.
    pub host_mac: Mac,
    /// The pod's gateway address.
    pub gateway: Addr,
}

impl Endpoint {
    /// Returns the link addresses of frames to the endpoint.
    #[inline(always)]
    pub const fn macs(&self) -> Macs {
        Macs { destination: self.pod_mac, source: self.host_mac }
    }
}

/// Every flow of the endpoint goes through the host stack, because one of its flows did not fit
/// into `STACK_FLOWS`. The programs set the bit. The agent clears it when there is room again.
pub const ENDPOINT_STACK_ONLY: u32 = 1;
/// The endpoint is the backend of a hostPort: its packets may be replies to translate back.
pub const ENDPOINT_HAS_HOST_PORTS: u32 = 2;
/// The endpoint's ingress is limited by the queue of the host side. The programs must send through
/// that queue all packets to the pod except those larger than its link's MTU.
pub const ENDPOINT_INGRESS_LIMITED: u32 = 4;
/// The endpoint's egress is limited by the queue on its own side. [`Guard`] catches a pod that
/// bypasses that queue.
pub const ENDPOINT_EGRESS_LIMITED: u32 = 8;

/// `EGRESS_GUARDS`: ifindex of a pod's host side → the highest rate at which the pod may send.
///
/// A pod that sends through the queue on its own side never reaches this rate. A pod that bypasses
/// the queue (a raw socket can) gains very little ([`crate::token_bucket::TokenBucket::guard`]).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Guard {
    /// The time at which all bytes that passed are paid for: `CLOCK_MONOTONIC`, nanoseconds. The
    /// programs write it.
    pub paid: u64,
    /// Cost of one byte of frame, picoseconds.
    pub cost: u64,
    /// How far ahead of now [`Self::paid`] may be, nanoseconds.
    pub credit: u64,
}

/// `NODES`: podCIDR or node address → the node that owns it. The key is an LPM key over an
/// [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Node {
    /// The node's InternalIP: the outer destination of packets to it, and the only outer source of
    /// packets from it.
    pub tunnel_endpoint: Addr,
    /// This node's address towards it: the outer source.
    pub source: Addr,
    /// This node's link towards it (ifindex); 0 for this node's own entries.
    pub uplink: u32,
    /// The largest IP packet that a pod may send to it, bytes: the uplink's MTU less the tunnel's
    /// headers.
    pub mtu: u32,
    /// A number for display, derived from the node's name.
    pub node_id: u32,
    /// `NODE_*` bits.
    pub flags: u32,
}

/// The entry is a podCIDR.
pub const NODE_POD_NETWORK: u32 = 1;
/// The entry is an address of the node itself.
pub const NODE_ADDRESS: u32 = 2;
/// The entry belongs to this node.
pub const NODE_LOCAL: u32 = 4;
/// The node is reached on the link itself, without a router.
pub const NODE_ON_LINK: u32 = 8;
/// The entry is the node's overlay address: the gateway of its own pods.
pub const NODE_OVERLAY: u32 = 16;
/// The node takes only inner frames to the link address in its [`Vtep`].
pub const NODE_VTEP: u32 = 32;
/// The other nodes know this address of this node: it is an InternalIP of the Node object, or the
/// [`NODE_OVERLAY`] address.
pub const NODE_NAMED: u32 = 64;
/// An IPsec policy of this host may match packets between this node's address and the other node's.
/// The tunnel goes through the VXLAN device.
pub const NODE_IPSEC_TUNNEL: u32 = 128;
/// An IPsec policy of this host may match packets between this node's pods and the entry's
/// addresses. These packets go through the host stack.
pub const NODE_IPSEC_PODS: u32 = 256;
/// The tunnel to the node is IPv6. It goes through the VXLAN device.
pub const NODE_TUNNEL_IPV6: u32 = 512;
/// The address of this node has no NodePorts (`--node-port-addresses`).
pub const NODE_WITHOUT_NODE_PORTS: u32 = 1024;

/// `NETWORKS`: pods keep their own addresses towards it.
pub const NETWORK_KEEPS_ADDRESS: u32 = 1;
/// `NETWORKS`: an IPsec policy of this host may match pods' packets to or from it. These packets go
/// through the host stack.
pub const NETWORK_THROUGH_STACK: u32 = 2;
/// `NETWORKS`: an IPsec policy of this host may match packets to which SNAT has given the node's
/// address. The kernel would have to ask the policy after SNAT but cannot, so the programs drop
/// these packets.
pub const NETWORK_REFUSED: u32 = 4;
/// `NETWORKS`: services have their ClusterIPs there (`--service-networks`). `SERVICES` has an entry
/// for each ClusterIP, with port and protocol 0.
pub const NETWORK_OF_SERVICES: u32 = 8;

/// `VTEPS`: tunnel endpoint of a node with [`NODE_VTEP`] → the node's VXLAN device. It may be the
/// only receiver there: a node of flannel has no programs of Podwire.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Vtep {
    /// The device's link address. The kernel there silently drops inner frames to any other
    /// address, because it takes them for another host's.
    pub mac: Mac,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `LINKS`: ifindex → what the link is for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Link {
    /// IPv4 source of packets that SNAT sends by this link; [`Addr::UNSPECIFIED`] if the link has
    /// no address.
    pub ipv4: Addr,
    /// For an uplink: this node's InternalIP, to which other nodes send VXLAN. For any other link:
    /// [`Addr::UNSPECIFIED`].
    pub tunnel_address: Addr,
    /// MTU, bytes of IP packet.
    pub mtu: u32,
    /// `LINK_*`.
    pub kind: u32,
    /// Number of pods' packets that the programs dropped because the route goes out by this link.
    /// The programs count it.
    pub refused: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// `LINKS6`: ifindex → the IPv6 addresses of a link that has programs.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Link6 {
    /// As [`Link::ipv4`].
    pub source: Addr,
    /// As [`Link::tunnel_address`].
    pub tunnel_address: Addr,
}

/// [`Link::kind`]: leads to the other nodes or to the world. The programs accept tunnel packets
/// there.
pub const LINK_UPLINK: u32 = 1;
/// [`Link::kind`]: leads to other hosts. The programs drop tunnel packets there.
pub const LINK_SIDE: u32 = 2;
/// [`Link::kind`]: leads to containers or machines of this host. Pods keep their addresses there.
pub const LINK_INNER: u32 = 3;
/// [`Link::kind`]: the VXLAN device. [`Link::ipv4`] is the overlay address.
pub const LINK_OVERLAY: u32 = 4;
/// [`Link::kind`]: has no programs. A pod's packet must not leave by it with the pod's address.
pub const LINK_WITHOUT_PROGRAMS: u32 = 5;
/// [`Link::kind`]: a dummy. No packet leaves by it. Hosts often have a route there for service
/// addresses: the host's rules send these packets elsewhere before they leave.
pub const LINK_SINK: u32 = 6;

/// A 5-tuple: the key of `STACK_FLOWS` and `TRANSLATIONS`.
///
/// For ICMP echo and timestamp, the identifier is the port of the side that asks: `source_port` in
/// a request, `destination_port` in a reply. The other port is 0. So a reply is the exact reverse
/// of its request. Protocols without ports have 0 in both.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Flow {
    /// Where the packet comes from.
    pub source: Addr,
    /// Where it goes.
    pub destination: Addr,
    /// Source port, network order.
    pub source_port: Be16,
    /// Destination port, network order.
    pub destination_port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 3],
}

/// `STACK_FLOWS`: a flow that must go through the host stack. The key is the 5-tuple of the packets
/// that must go there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct StackFlow {
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
}

/// `FRAGMENTS`: the datagram that a fragment belongs to (RFC 791 section 3.2).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct FragmentKey {
    /// Where the datagram comes from.
    pub source: Addr,
    /// Where it goes.
    pub destination: Addr,
    /// Network order; of IPv4 the last two bytes.
    pub identification: [u8; 4],
    /// IP protocol number; 0 for IPv6, where it does not tell datagrams apart.
    pub protocol: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 3],
}

/// `FRAGMENTS`: the ports, which only a datagram's first fragment contains.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct FragmentPorts {
    /// As in [`Flow::source_port`].
    pub source_port: Be16,
    /// As in [`Flow::destination_port`].
    pub destination_port: Be16,
    /// 1: a later fragment came before the first, and neither port is known.
    pub early: u8,
    /// IP protocol number. In IPv6 only the first fragment is certain to have it.
    pub protocol: u8,
    /// Explicit padding, zero.
    pub reserved: [u8; 2],
}

/// `INBOUND_FLOWS`: a flow that a client outside began, to the pod's own address. The key is the
/// 5-tuple of the pod's answers. The programs never translate it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct InboundFlow {
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
}

/// `TRANSLATIONS`: a flow → the translated flow.
///
/// A translation has two entries: the original flow → the translated one, and the translated
/// flow's reverse → the original's reverse. So a reply finds its own way back, and each half
/// names the other ([`Self::other_half`]). The programs make, refresh and remove both together, and
/// both have the same state. The one exception is a [`TRANSLATION_RESERVATION`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Translation {
    /// Reserved in the artificial layout 0.
    #[cfg(feature = "earlier-layout")]
    pub earlier: [u8; 8],
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
    /// Source address after translation.
    pub source: Addr,
    /// Destination address after translation.
    pub destination: Addr,
    /// Source port after translation, network order.
    pub source_port: Be16,
    /// Destination port after translation, network order.
    pub destination_port: Be16,
    /// The link on the outside of the flow: towards the world, towards the client of a hostPort, or
    /// towards the backend of a service (0: it is on this node, or outside the cluster).
    pub ifindex: u32,
    /// When the host's rules last decided: on this flow's first packet, or on the first packet of
    /// the other connection that decides for this flow too ([`Self::past_stack`]). Lower half of
    /// the kernel's jiffies.
    pub asked: u32,
    /// `TRANSLATION_*`.
    pub kind: u8,
    /// 0: the half of the original flow; 1: the half of its replies.
    pub reply: u8,
    /// `STATE_*` bits.
    pub state: u8,
    /// 1: a pod reaches itself through its node.
    pub hairpin: u8,
    /// 1: the host's rules let the flow's first packet pass unchanged, or the first packet of an
    /// earlier connection to the same address and port. All packets but that one go past the host
    /// stack, both ways ([`TRANSLATION_SNAT`]). Or: the backend is outside the cluster
    /// ([`TRANSLATION_RELAY`]).
    pub past_stack: u8,
    /// 1: a packet of this half's direction has gone past the host stack, so the next one is worth
    /// an entry in `FLOWS`. Short connections get no entry.
    pub is_long: u8,
    /// The slot of `EPOCHS` that flows of this service hold ([`crate::epoch::service`]); 0 for all
    /// other flows.
    pub service: u16,
    /// Lower half of the number of the list from which the backend was chosen ([`Service::list`]);
    /// 0 for all flows that are not a service's.
    pub list: u32,
}

/// A pod's flow to the world: its source becomes an address of the uplink.
pub const TRANSLATION_SNAT: u8 = 1;
/// A flow of this node itself. A pod's translated flow already had its 5-tuple, so its source port
/// is replaced.
pub const TRANSLATION_HOST: u8 = 2;
/// A flow to a hostPort: its destination becomes the pod.
pub const TRANSLATION_HOST_PORT: u8 = 3;
/// A flow that leaves with an address of this node and that no lookup of sockets finds: the host's
/// own rules have translated it, it is an echo, or its protocol is neither TCP nor UDP. Nothing is
/// translated. Only the half of the replies exists, so that no other flow takes the 5-tuple.
pub const TRANSLATION_RESERVATION: u8 = 4;
/// A pod's flow to a service: its destination becomes a backend. So that a flow of the pod to the
/// backend itself is never mistaken for it, its source port leaves the ephemeral range, too.
pub const TRANSLATION_SERVICE: u8 = 6;
/// A flow into the tunnel from a source that the other nodes do not know. The source becomes this
/// node's overlay address.
pub const TRANSLATION_TUNNEL: u8 = 5;
/// A flow of a client outside to a service: its destination becomes a backend on this node.
pub const TRANSLATION_OUTSIDE: u8 = 7;
/// A flow of a client outside to a service: its destination becomes a backend on another node. Its
/// source becomes this node's InternalIP, so that the answers come back here, and its source port
/// leaves the ephemeral range, as for [`TRANSLATION_SERVICE`].
pub const TRANSLATION_RELAY: u8 = 8;

/// A reply was seen.
pub const STATE_REPLIED: u8 = 1;
/// A TCP FIN was seen in the original direction.
pub const STATE_FIN: u8 = 2;
/// A TCP FIN was seen in the direction of the replies.
pub const STATE_REPLY_FIN: u8 = 4;
/// A TCP RST came last, from the end with a checked address: a pod or this node.
pub const STATE_RESET: u8 = 8;
/// A packet followed in the original direction after a reply.
pub const STATE_ESTABLISHED: u8 = 16;
/// A TCP RST came last, from the other end. It may be forged.
pub const STATE_OUTSIDE_RESET: u8 = 32;

/// `HOLDERS`: holder and table → how many entries the holder has in a table that never evicts.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Holder {
    /// A pod of this node, or the overlay address for flows of [`TRANSLATION_TUNNEL`];
    /// [`Addr::UNSPECIFIED`] for the node itself.
    pub address: Addr,
    /// The pod's port behind a hostPort, or behind a service for clients outside: then the entries are
    /// the flows of these clients. Else 0. Network order.
    pub port: Be16,
    /// IP protocol number if there is a port, else 0.
    pub protocol: u8,
    /// `TABLE_*`.
    pub table: u8,
}

impl Holder {
    /// Returns the holder that a pod's entries of `STACK_FLOWS` count for: the pod.
    #[inline(always)]
    pub const fn of_stack_flows(local_pod: Addr) -> Self {
        Self { address: local_pod, port: Be16::ZERO, protocol: 0, table: TABLE_STACK_FLOWS }
    }
}

/// `TRANSLATIONS`, in [`Holder::table`] and as the index of `ROOM`.
pub const TABLE_TRANSLATIONS: u8 = 0;
/// `STACK_FLOWS`, in [`Holder::table`] and as the index of `ROOM`.
pub const TABLE_STACK_FLOWS: u8 = 1;
/// Entries of `ROOM`.
pub const TABLES: usize = 2;

/// A 5-tuple of IPv4 in 16 bytes: the key of `FLOWS`, in which every packet of a pod is looked up.
/// The kernel's hash takes two rounds for it, but four for a [`Flow`], the key of `FLOWS6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct FlowKey {
    /// Where the packet comes from.
    pub source: Quad,
    /// Where it goes.
    pub destination: Quad,
    /// Network order.
    pub source_port: Be16,
    /// Network order.
    pub destination_port: Be16,
    /// IP protocol number.
    pub protocol: u32,
}

/// `BEGINNINGS`: a flow's first packet, as it must leave if no rule of the host changes anything.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Beginning {
    /// The packet's flow.
    pub flow: Flow,
    /// A sum over everything else that a rule may change: traffic class, time to live, length, and
    /// for TCP the whole header.
    pub imprint: u32,
    /// The link by which the packet leaves according to the kernel's routes (ifindex); 0: not
    /// known.
    pub link: u32,
    /// The link address of the next hop; zeros while the kernel does not know it.
    pub next_hop_mac: Mac,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// The link addresses of a frame, in their order on the wire.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Macs {
    /// Link destination.
    pub destination: Mac,
    /// Link source.
    pub source: Mac,
}

/// `FLOWS`, `FLOWS6`: what the programs have found out about a flow that goes past the host stack,
/// so that its next packets need no other lookups. The programs use an entry only for
/// [`KNOWN_FLOW_JIFFIES`], and only while [`Self::epochs`] is the sum of `EPOCHS` over
/// [`Self::slots`]. After that they find all of it out again.
///
/// An entry says three things: how its packets come, what is rewritten, and which way they leave.
/// The three are independent: the type allows every combination.
///
/// `A` is the form of the flow's addresses: [`Quad`] in `FLOWS`, for IPv4; [`Addr`] in `FLOWS6`,
/// for IPv6.
// Aligned for both forms: the compiler then copies it by words of eight bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct KnownFlow<A: FlowAddr = Quad> {
    /// A copy of the key. The kernel may reuse an element of an LRU at once. A reader compares this
    /// copy last, to see that the element was still the same entry.
    pub key: A::Key,
    /// The wrapping sum of the numbers in [`Self::slots`] when the flow was learnt.
    pub epochs: u32,
    /// When the programs asked the kernel; in an entry for many flows, when they asked the host's
    /// rules. Lower half of the kernel's jiffies.
    pub asked: u32,
    /// What the flow depends on: see [`crate::epoch`].
    pub slots: [u16; FLOW_SLOTS],
    /// The link by which its packets come.
    pub from: u32,
    /// The link by which they leave: an uplink, or the host side of a pod's veth pair.
    pub to: u32,
    /// The largest IP packet that follows the entry, bytes; without the tunnel's headers.
    pub mtu: u32,
    /// The sender's link address in the flow's first packet.
    pub sender_mac: Mac,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// `LEAVES_*`.
    pub leaves: u8,
    /// Link addresses of a frame into a pod: the pod's own and its gateway's. Otherwise zeros.
    pub macs: Macs,
    /// Source address after rewriting.
    pub source: A,
    /// Destination address after rewriting.
    pub destination: A,
    /// Source port after rewriting, network order. 0 in an entry for many flows
    /// ([`Flow::destination_key`]): each flow has its own.
    pub source_port: Be16,
    /// Destination port after rewriting, network order.
    pub destination_port: Be16,
    /// The path that its packets are counted under: a number of [`crate::reason::Path`].
    pub path: u16,
    /// Explicit padding.
    pub reserved: [u8; 2],
    /// For packets that leave by an uplink: the router, or without a router the node or host
    /// itself.
    pub next_hop: NextHop,
    /// For packets that come or leave in the tunnel.
    pub tunnel: Tunnel,
    /// Explicit padding.
    pub reserved2: [u8; 4],
}

/// The neighbour that the kernel sends packets to, in the kernel's form (`struct bpf_redir_neigh`).
/// A packet of one family may go to a router of the other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct NextHop {
    /// [`FAMILY_IPV4`], [`FAMILY_IPV6`]; [`FAMILY_UNKNOWN`]: the kernel looks for the route.
    pub family: u32,
    /// Network order in memory; for IPv4 the first word.
    pub address: [u32; 4],
}

impl NextHop {
    /// The next hop is not known.
    pub const UNKNOWN: Self = Self { family: FAMILY_UNKNOWN, address: [0; 4] };

    /// Makes an IPv4 next hop.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        Self { family: FAMILY_IPV4, address: [u32::from_ne_bytes(address), 0, 0, 0] }
    }

    /// Returns the address if it is of a family, `FAMILY_*`.
    #[inline(always)]
    pub const fn address_of(&self, family: u32) -> Option<Addr> {
        match family {
            _ if self.family != family => None,
            FAMILY_IPV4 => Some(Addr::from_v4(self.address[0].to_ne_bytes())),
            FAMILY_IPV6 => Some(Addr::from_words(self.address)),
            _ => None,
        }
    }
}

/// [`NextHop::family`]: not known.
pub const FAMILY_UNKNOWN: u32 = 0;
/// `AF_INET`.
pub const FAMILY_IPV4: u32 = 2;
/// `AF_INET6`.
pub const FAMILY_IPV6: u32 = 10;

/// Both ends of the tunnel on the underlay, and the other variable parts of the headers of packets
/// into it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Tunnel {
    /// This node's address. Unspecified if the flow's packets do not leave in the tunnel.
    pub here: Addr,
    /// The other node's address.
    pub there: Addr,
    /// Source port of the outer header, network order.
    pub source_port: Be16,
    /// Link destination of the inner frame.
    pub inner_mac: Mac,
}

impl Tunnel {
    /// No tunnel.
    pub const NONE: Self = Self {
        here: Addr::UNSPECIFIED,
        there: Addr::UNSPECIFIED,
        source_port: Be16::ZERO,
        inner_mac: Mac { bytes: [0; 6] },
    };
}

/// How long an entry of `FLOWS` counts: a quarter of a second if the kernel ticks 1000 times a
/// second, one second with 250. After that the programs ask the kernel again (routes, path MTU).
pub const KNOWN_FLOW_JIFFIES: u32 = 256;
/// [`KnownFlow::flags`]: only packets with [`KnownFlow::sender_mac`] follow the entry.
pub const FLOW_OF_SENDER: u8 = 1;
/// [`KnownFlow::flags`]: its packets come in the tunnel, from [`Tunnel::there`]; the key is the
/// inner flow. Without this bit they come bare.
pub const FLOW_IN_TUNNEL: u8 = 2;
/// [`KnownFlow::flags`]: source and source port are rewritten.
pub const FLOW_REWRITES_SOURCE: u8 = 4;
/// [`KnownFlow::flags`]: destination and destination port are rewritten.
pub const FLOW_REWRITES_DESTINATION: u8 = 8;
/// [`KnownFlow::leaves`]: into a pod, with [`KnownFlow::macs`].
pub const LEAVES_INTO_POD: u8 = 1;
/// [`KnownFlow::leaves`]: by an uplink, to [`KnownFlow::next_hop`].
pub const LEAVES_BY_UPLINK: u8 = 2;
/// [`KnownFlow::leaves`]: by an uplink, to [`KnownFlow::next_hop`], inside [`KnownFlow::tunnel`] of
/// IPv4.
pub const LEAVES_IN_TUNNEL: u8 = 3;
/// [`KnownFlow::leaves`]: the same, inside a tunnel of IPv6.
pub const LEAVES_IN_TUNNEL6: u8 = 4;

/// `FRONTENDS`: address and port of a hostPort. `SERVICES`: those of a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Frontend {
    /// A service's address, or one of this node; 0.0.0.0 for all of this node's IPv4 addresses, `::`
    /// for all of its IPv6 addresses.
    pub address: Addr,
    /// Port, network order.
    pub port: Be16,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// `CLIENTS_*`: a service may have other backends for clients outside. 0 for a hostPort.
    pub clients: u8,
}

/// [`Frontend::clients`]: pods and processes of this node.
pub const CLIENTS_INSIDE: u8 = 0;
/// [`Frontend::clients`]: all others, those on other nodes included.
pub const CLIENTS_OUTSIDE: u8 = 1;

/// `FRONTENDS`: the pod behind a [`Frontend`]. `BACKENDS`: a backend of a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Backend {
    /// Address of a pod: behind a hostPort, of a pod of this node.
    pub address: Addr,
    /// The pod's port, network order.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `SERVICES`: where a service answers → which list of `BACKENDS` it has. The key is a [`Frontend`].
/// With port and protocol 0 it stands for the ports that a ClusterIP does not have:
/// [`SERVICE_REFUSES`] if the programs serve all others.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Service {
    /// The list. Another list has another number, so a list never changes while a service has it.
    pub list: u64,
    /// The service's port, for [`ServingKey::service`] and [`AffinityKey::service`]. It stays the
    /// same while the list changes.
    pub id: u64,
    /// Number of its backends. Without any, [`Self::refusal`] says what happens.
    pub backends: u32,
    /// `SERVICE_*` bits.
    pub flags: u32,
    /// Seconds for which a client keeps its backend after its last new connection; 0: each
    /// connection chooses.
    pub affinity: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// [`Service::flags`]: the programs serve the service to pods, but not to this node's own processes.
pub const SERVICE_NOT_FOR_PROCESSES: u32 = 1;
/// [`Service::flags`]: only clients in a [`SourceRange`] of the list may begin a flow.
pub const SERVICE_HAS_SOURCE_RANGES: u32 = 8;
/// [`Service::flags`]: no endpoint anywhere can be used. New flows are refused.
pub const SERVICE_REFUSES: u32 = 2;
/// [`Service::flags`]: only other nodes have endpoints, and the policy is `Local`. New flows are
/// dropped.
pub const SERVICE_DROPS: u32 = 4;

impl Service {
    /// Returns why no new flow reaches a backend.
    #[inline(always)]
    pub const fn refusal(&self) -> Option<Drop> {
        if self.flags & SERVICE_REFUSES != 0 {
            return Some(Drop::NoBackend);
        }
        if self.flags & SERVICE_DROPS != 0 { Some(Drop::NoLocalBackend) } else { None }
    }
}

/// `BACKENDS`: the key of one backend of a list. `SOURCE_RANGES`: that of a range.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct BackendKey {
    /// [`Service::list`].
    pub list: u64,
    /// Position: of a backend below [`Service::backends`], of a range below [`MAX_SOURCE_RANGES`].
    pub index: u32,
    /// Explicit padding, zero: part of the key.
    pub reserved: u32,
}

/// `SERVING`: a backend to which UDP flows of a service go on. The value is 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct ServingKey {
    /// [`Service::id`].
    pub service: u64,
    /// The backend's address.
    pub address: Addr,
    /// The backend's port, network order.
    pub port: Be16,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 6],
}

/// The most source ranges that the programs look through.
pub const MAX_SOURCE_RANGES: u32 = 32;

/// `SOURCE_RANGES`: a network of clients that may use a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct SourceRange {
    /// The network's first address.
    pub network: Addr,
    /// The bits that all of its addresses share.
    pub mask: Addr,
}

impl SourceRange {
    /// Returns whether the network has an address.
    #[inline(always)]
    pub const fn has(&self, address: &Addr) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (address.words(), self.mask.words());
        let [i, j, k, l] = self.network.words();
        (a & e) ^ i | (b & f) ^ j | (c & g) ^ k | (d & h) ^ l == 0
    }
}

/// `POSITIONS`: a backend of a list, of a service with session affinity. The value is
/// [`BackendKey::index`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct PositionKey {
    /// [`Service::list`].
    pub list: u64,
    /// The backend's address.
    pub address: Addr,
    /// The backend's port, network order.
    pub port: Be16,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 6],
}

/// `AFFINITY`: a client of a service with session affinity.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct AffinityKey {
    /// [`Service::id`]. So a client has one backend for all addresses of the service's port.
    pub service: u64,
    /// The client's address; [`Addr::UNSPECIFIED`]: this node's own processes, which are one
    /// client.
    pub client: Addr,
}

/// `AFFINITY`: the backend that a client keeps.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Affinity {
    /// When the client began its last connection: `CLOCK_MONOTONIC`, nanoseconds.
    pub last_begun: u64,
    /// The backend's address.
    pub address: Addr,
    /// The backend's port, network order.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u8; 6],
}

/// `REDIRECTED_SOCKETS`: a socket of this node's own processes, and the pod that the programs
/// pointed it at.
///
/// Each backend that a socket was pointed at has an entry of kind [`SOCKET_ASKED`]. Entries of kind
/// [`SOCKET_BEFORE`] make a list of a socket's backends, so that a closed socket needs no walk
/// through the table: the list begins at the unspecified address and port. Entries of kind
/// [`SOCKET_CHOSEN`] are the reverse of [`SOCKET_ASKED`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct RedirectedSocket {
    /// The kernel's number of the socket; never reused until a reboot.
    pub cookie: u64,
    /// The backend's address; for [`SOCKET_CHOSEN`] the service's.
    pub address: Addr,
    /// The port there, network order.
    pub port: Be16,
    /// `SOCKET_*`.
    pub kind: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 5],
}

/// [`RedirectedSocket::kind`]: the value is the address that the process asked for, and believes its
/// socket sends to.
pub const SOCKET_ASKED: u8 = 0;
/// [`RedirectedSocket::kind`]: the value is the backend that the socket was pointed at before this
/// one. Only sockets to services have such entries.
pub const SOCKET_BEFORE: u8 = 1;
/// [`RedirectedSocket::kind`]: the value is the backend that a UDP socket keeps for a service with
/// session affinity.
pub const SOCKET_CHOSEN: u8 = 2;

/// `REDIRECTED_SOCKETS`: an address, as the kind of the key says.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct SocketAddress {
    /// The address. One that a process asked for may be in 127.0.0.0/8.
    pub address: Addr,
    /// Port, network order.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `DROPS` and `TRAFFIC`: the count for one reason or path.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Count {
    /// Packets; a large segment counts as one.
    pub packets: u64,
    /// Bytes of frame.
    pub bytes: u64,
}

/// Read-only data of the object, written at load.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Config {
    /// `MODE_*`.
    pub mode: u16,
    /// `LINK_ADDRESSES_*`.
    pub link_addresses: u16,
    /// VXLAN network identifier, host order, 24 bits.
    pub vni: u32,
    /// The VXLAN device; 0 in direct mode.
    pub vxlan_ifindex: u32,
    /// UDP port of the tunnel.
    pub vxlan_port: Be16,
    /// First of the source ports that SNAT chooses from when the flow's own is taken; host order.
    pub snat_port_first: u16,
    /// Last source port that SNAT chooses from; host order.
    pub snat_port_last: u16,
    /// First port of Kubernetes' NodePort range, which the programs never take for a translated
    /// flow; host order.
    pub node_port_first: u16,
    /// Last port of Kubernetes' NodePort range; host order.
    pub node_port_last: u16,
    /// `ASK_*`.
    pub ask: u16,
    /// `SERVICES_*` bits.
    pub services: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Cookie of this node's network namespace. Processes in other namespaces are not this node's.
    pub netns_cookie: u64,
}

/// Read-only data of the object, written at load: where the running kernel's `struct sk_buff` has
/// the fields that a program's context does not expose. A program reads the fields of a checksum in
/// one call, because they lie within [`SKB_WINDOW`] bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct SkbLayout {
    /// Offset of the window, in bytes of the structure.
    pub window: u16,
    /// The lower bit of the two-bit field `ip_summed`, in bits of the window.
    pub ip_summed: u16,
    /// The bit `encapsulation`, in bits of the window.
    pub encapsulation: u16,
    /// `csum_start`, 16 bits; in bytes of the window.
    pub csum_start: u16,
    /// `csum_offset`, 16 bits; in bytes of the window.
    pub csum_offset: u16,
    /// `mac_header`, 16 bits; in bytes of the window.
    pub mac_header: u16,
    /// `head`, a pointer; in bytes of the structure.
    pub head: u16,
    /// `end`, 32 bits: the offset from `head` at which `struct skb_shared_info` begins; in bytes of
    /// the structure.
    pub end: u16,
    /// `gso_type` of `struct skb_shared_info`, 32 bits; in bytes of that structure.
    pub gso_type: u16,
}

/// Bytes of the window of [`SkbLayout`].
pub const SKB_WINDOW: usize = 64;

/// The host's rules see the first packet of one of a pod's TCP connections to an address and port
/// of the world. When that connection has an answer, the pod's other connections to the same
/// address and port bypass the rules, until [`KNOWN_FLOW_JIFFIES`] after that first packet.
pub const ASK_EACH_DESTINATION: u16 = 0;
/// The host's rules see the first packet of each connection.
pub const ASK_EACH_CONNECTION: u16 = 1;

/// [`Config::services`]: the programs translate pods' packets to services.
pub const SERVICES_SERVED: u32 = 1;
/// [`Config::services`]: some networks have [`NETWORK_OF_SERVICES`].
pub const SERVICES_HAVE_NETWORKS: u32 = 2;

/// Pod packets travel between nodes inside VXLAN.
pub const MODE_VXLAN: u16 = 0;
/// Pod packets travel between nodes as they are.
pub const MODE_DIRECT: u16 = 1;

/// A remote pod's bare packet may come from any link address.
pub const LINK_ADDRESSES_ANY: u16 = 0;
/// A remote pod's bare packet must come from its node's link address, if the kernel has a neighbour
/// entry for that node.
pub const LINK_ADDRESSES_CHECKED: u16 = 1;

/// Declares types that the kernel and user space copy byte by byte, each with its size.
macro_rules! plain {
    ($($type:ty: $size:expr,)*) => { $(
        const _: () = assert!(size_of::<$type>() == $size);
        #[cfg(feature = "aya")]
        #[expect(unsafe_code, reason = "aya's marker for types that any bytes make a valid value of")]
        // SAFETY: the types are `repr(C)` and consist of integers and byte arrays only. Their size
        // is the sum of the fields' sizes, so there is no padding.
        unsafe impl aya::Pod for $type {}
    )* };
}

pub(crate) use plain;

plain! {
    Addr: 16,
    LpmAddr: 16,
    Endpoint: 44 + EARLIER,
    Guard: 24,
    Node: 48,
    Vtep: 8,
    Link: 48,
    Link6: 32,
    Flow: 40,
    StackFlow: 8,
    FragmentKey: 40,
    FragmentPorts: 8,
    InboundFlow: 8,
    Translation: 64 + EARLIER,
    KnownFlow: 144,
    KnownFlow<Addr>: 192,
    FlowKey: 16,
    NextHop: 20,
    Tunnel: 40,
    Beginning: 56,
    Macs: 12,
    Frontend: 20,
    Holder: 20,
    Backend: 20,
    Service: 32,
    BackendKey: 16,
    SourceRange: 32,
    ServingKey: 32,
    PositionKey: 32,
    AffinityKey: 24,
    Affinity: 32,
    RedirectedSocket: 32,
    SocketAddress: 20,
    Count: 16,
    SkbLayout: 18,
    Config: 40,
}
