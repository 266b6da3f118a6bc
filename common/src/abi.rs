//! Keys and values of the pinned maps, and the constants that user space writes into the object at load.
//!
//! Every type is fixed-width with explicit padding: padding that the compiler chose would break key comparison,
//! and an unknown byte would be an invalid `bool` or `enum`.

use crate::addr::{Addr, Be16, LpmAddr, Mac, Quad};
use crate::epoch::FLOW_SLOTS;

/// The layout of every pinned map together, and its number beside the pins. An agent takes over the
/// maps of an earlier layout and refuses those of a later one.
///
/// A release that changes a table's keys or values counts this up, gives the table the new number in
/// [`Table::layout`](crate::tables::Table::layout), and adds a conversion to the agent.
pub const SCHEMA_VERSION: u32 = if cfg!(feature = "earlier-layout") { 0 } else { 1 };
/// Bytes by which the entries of the artificial layout 0 are larger.
const EARLIER: usize = if cfg!(feature = "earlier-layout") { 8 } else { 0 };

/// `ENDPOINTS`: pod address → how to reach that pod on this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Endpoint {
    /// Reserved in the artificial layout 0.
    #[cfg(feature = "earlier-layout")]
    pub earlier: [u8; 8],
    /// The host side of the pod's veth pair.
    pub ifindex: u32,
    /// The agent's number for the endpoint; unique on the node while the endpoint lives.
    pub id: u32,
    /// `ENDPOINT_*` bits.
    pub flags: u32,
    /// The largest IP packet, bytes, that its link takes.
    pub mtu: u32,
    /// The pod's own address on its link: the only source that it may send from.
    pub pod_mac: Mac,
    /// The host side's address: the pod's gateway's.
    pub host_mac: Mac,
    /// The address that the pod has as its gateway.
    pub gateway: Addr,
}

impl Endpoint {
    /// The link addresses of what the endpoint is sent.
    #[inline(always)]
    pub const fn macs(&self) -> Macs {
        Macs { destination: self.pod_mac, source: self.host_mac }
    }
}

/// Every flow of the endpoint goes through the host stack, because `STACK_FLOWS` was full when one of its flows
/// had to be recorded. Set by the programs, cleared by the agent when there is room again.
pub const ENDPOINT_STACK_ONLY: u32 = 1;
/// The endpoint is the backend of a hostPort: what it sends may be a reply to be translated back.
pub const ENDPOINT_HAS_HOST_PORTS: u32 = 2;
/// What the endpoint receives is limited: it waits in the queue of the host side, which nothing may go past.
pub const ENDPOINT_INGRESS_LIMITED: u32 = 4;
/// What the endpoint sends is limited: its own side's queue sees to it, and [`Guard`] to that queue.
pub const ENDPOINT_EGRESS_LIMITED: u32 = 8;

/// `EGRESS_GUARDS`: ifindex of a pod's host side → how fast it may send at the very most. Who sends through the queue on the pod's side
/// never meets it; who gets around that (a raw socket can) gains nothing to speak of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Guard {
    /// When all that has passed is paid for: `CLOCK_MONOTONIC`, nanoseconds. Written by the programs.
    pub paid: u64,
    /// What a byte of frame costs: picoseconds.
    pub cost: u64,
    /// How far ahead of now [`Self::paid`] may be, nanoseconds.
    pub credit: u64,
}

/// `NODES`: podCIDR or node address → the node that owns it. The key is an LPM key over an [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Node {
    /// The node's InternalIP: the outer destination towards it and the only outer source from it.
    pub tunnel_endpoint: Addr,
    /// Our own address towards it: the outer source.
    pub source: Addr,
    /// Our link towards it (ifindex); 0 for this node's own entries.
    pub uplink: u32,
    /// The largest IP packet, in bytes, that a pod may send to it: the uplink's MTU less the tunnel's headers.
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
/// The entry is the address that the node has among its own pods: their gateway's.
pub const NODE_OVERLAY: u32 = 16;
/// The node takes inner frames for one link address only: that of its [`Vtep`].
pub const NODE_VTEP: u32 = 32;
/// The other nodes know this address of this node: an InternalIP of the Node object, or the [`NODE_OVERLAY`] address.
pub const NODE_NAMED: u32 = 64;
/// An IPsec policy of this host may match packets between this node's address and the other's: the tunnel goes through the VXLAN device.
pub const NODE_IPSEC_TUNNEL: u32 = 128;
/// An IPsec policy of this host may match packets between this node's pods and the entry's addresses: they go through the host stack.
pub const NODE_IPSEC_PODS: u32 = 256;

/// `NETWORKS`: pods keep their own addresses towards it.
pub const NETWORK_KEEPS_ADDRESS: u32 = 1;
/// `NETWORKS`: an IPsec policy of this host may match pods' packets to or from it: they go through the host stack.
pub const NETWORK_THROUGH_STACK: u32 = 2;
/// `NETWORKS`: an IPsec policy of this host may match packets that SNAT has given the node's address. It would have to be asked after SNAT,
/// so the programs drop them.
pub const NETWORK_REFUSED: u32 = 4;

/// `VTEPS`: tunnel endpoint of a node with [`NODE_VTEP`] → its VXLAN device, where that is all that receives there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Vtep {
    /// The device's link address. The kernel takes frames for any other for somebody else's, and drops them silently.
    pub mac: Mac,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `LINKS`: ifindex → what the link is for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Link {
    /// IPv4 source of packets that SNAT sends by this link; [`Addr::UNSPECIFIED`] if the link has no address.
    pub ipv4: Addr,
    /// Of an uplink: this node's InternalIP, to which other nodes send VXLAN. Of any other link: [`Addr::UNSPECIFIED`].
    pub tunnel_address: Addr,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// `LINK_*`.
    pub kind: u32,
    /// Pods' packets that the programs dropped because the route leads by this link. The programs count them.
    pub refused: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// [`Link::kind`]: leads to the other nodes or to the world. It takes the tunnel.
pub const LINK_UPLINK: u32 = 1;
/// [`Link::kind`]: leads to other hosts. It takes no tunnel packets.
pub const LINK_SIDE: u32 = 2;
/// [`Link::kind`]: leads to containers or machines of this host. Pods keep their addresses there.
pub const LINK_INNER: u32 = 3;
/// [`Link::kind`]: the VXLAN device. [`Link::ipv4`] is the overlay address.
pub const LINK_OVERLAY: u32 = 4;
/// [`Link::kind`]: has no programs. A pod's packet must not leave by it.
pub const LINK_WITHOUT_PROGRAMS: u32 = 5;
/// [`Link::kind`]: a dummy. No packet leaves by it: a route that leads there is often for what a service's rules send elsewhere.
pub const LINK_SINK: u32 = 6;

/// A 5-tuple: the key of `STACK_FLOWS` and `TRANSLATIONS`.
///
/// ICMP echo has its identifier as the port of the side that asks: `source_port` in a request,
/// `destination_port` in a reply; the other port is 0. So a reply is the exact reverse of its request. Protocols
/// without ports have 0 in both.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Flow {
    /// Where the packet comes from.
    pub source: Addr,
    /// Where it goes.
    pub destination: Addr,
    /// Network order.
    pub source_port: Be16,
    /// Network order.
    pub destination_port: Be16,
    /// IP protocol number.
    pub protocol: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 3],
}

/// `STACK_FLOWS`: a flow, as its next packet would come, that must go through the host stack.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct StackFlow {
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
}

/// `FRAGMENTS`: which datagram a fragment belongs to (RFC 791 section 3.2).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct FragmentKey {
    /// Where the datagram comes from.
    pub source: Addr,
    /// Where it goes.
    pub destination: Addr,
    /// IPv4 identification in the last two bytes, network order.
    pub identification: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 3],
}

/// The ports that only a datagram's first fragment bears.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct FragmentPorts {
    /// As in [`Flow::source_port`].
    pub source_port: Be16,
    /// As in [`Flow::destination_port`].
    pub destination_port: Be16,
    /// 1: a later fragment came before the first, and neither port is known.
    pub early: u32,
}

/// `INBOUND_FLOWS`: a pod's flow that somebody outside began by the pod's own address, as the pod answers: never translated.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct InboundFlow {
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
}

/// `TRANSLATIONS`: a flow → what it becomes.
///
/// A translation is two entries: the original flow → the translated one, and the translated flow's reverse → the
/// original's. So a reply finds its own way back, and each half names the other ([`Self::other_half`]). They are made, refreshed
/// and removed together, and tell the same state. The one exception is a [`TRANSLATION_RESERVATION`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Translation {
    /// Reserved in the artificial layout 0.
    #[cfg(feature = "earlier-layout")]
    pub earlier: [u8; 8],
    /// `CLOCK_MONOTONIC`, nanoseconds; refreshed about once a second.
    pub last_seen: u64,
    /// Where the packet comes from after translation.
    pub source: Addr,
    /// Where it goes after translation.
    pub destination: Addr,
    /// Network order.
    pub source_port: Be16,
    /// Network order.
    pub destination_port: Be16,
    /// The link on which the flow is seen from outside: to the world, or to the client of a hostPort.
    pub ifindex: u32,
    /// When the host's rules were asked about it ([`Self::past_stack`]), or about another connection by whose answer this one goes; the
    /// kernel's jiffies, their lower half.
    pub asked: u32,
    /// `TRANSLATION_*`.
    pub kind: u8,
    /// 0: the half of the original flow; 1: that of its replies.
    pub reply: u8,
    /// `STATE_*` bits.
    pub state: u8,
    /// 1: a pod reaches itself by way of its node.
    pub hairpin: u8,
    /// 1: the host's rules let the flow's first packet pass as it was; all others go past the host stack, both ways
    /// ([`TRANSLATION_SNAT`]).
    pub past_stack: u8,
    /// 1: a packet of this half's direction went past the host stack, so that the next one is worth an entry in `FLOWS`. Short connections
    /// have none.
    pub is_long: u8,
    /// Explicit padding.
    pub reserved: [u8; 6],
}

/// A pod's flow to the world: its source becomes an address of the uplink.
pub const TRANSLATION_SNAT: u8 = 1;
/// A flow of this node itself whose 5-tuple a pod's translated flow had before it: its source port is replaced.
pub const TRANSLATION_HOST: u8 = 2;
/// A flow to a hostPort: its destination becomes the pod.
pub const TRANSLATION_HOST_PORT: u8 = 3;
/// A flow that leaves with an address of this node and has no socket here (the host's own rules have translated it), or is an
/// echo. Nothing is translated; only the half of the replies is there, so that nobody else takes its 5-tuple.
pub const TRANSLATION_RESERVATION: u8 = 4;
/// A flow into the tunnel from a source that the other nodes do not know: the source becomes this node's overlay address.
pub const TRANSLATION_TUNNEL: u8 = 5;

/// A reply was seen.
pub const STATE_REPLIED: u8 = 1;
/// A TCP FIN was seen in the original direction.
pub const STATE_FIN: u8 = 2;
/// A TCP FIN was seen in the direction of the replies.
pub const STATE_REPLY_FIN: u8 = 4;
/// A TCP RST came last, from the end whose address is checked: a pod or this node.
pub const STATE_RESET: u8 = 8;
/// A packet followed in the original direction after a reply.
pub const STATE_ESTABLISHED: u8 = 16;
/// A TCP RST came last, from the other end. Anybody can invent one.
pub const STATE_OUTSIDE_RESET: u8 = 32;

/// `HOLDERS`: who holds how many entries of a table that never evicts. The value is a number of entries.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Holder {
    /// A pod of this node; [`Addr::UNSPECIFIED`] for the node itself.
    pub address: Addr,
    /// With a protocol: the pod's port behind a hostPort, whose clients' flows these are; network order.
    pub port: Be16,
    /// IP protocol number of a hostPort, else 0.
    pub protocol: u8,
    /// `TABLE_*`.
    pub table: u8,
}

impl Holder {
    /// Who answers for a pod's entries of `STACK_FLOWS`: the pod.
    #[inline(always)]
    pub const fn of_stack_flows(local_pod: Addr) -> Self {
        Self { address: local_pod, port: Be16::ZERO, protocol: 0, table: TABLE_STACK_FLOWS }
    }
}

/// `TRANSLATIONS`, in [`Holder::table`] and as the index of `ROOM`.
pub const TABLE_TRANSLATIONS: u8 = 0;
/// `STACK_FLOWS`, likewise.
pub const TABLE_STACK_FLOWS: u8 = 1;
/// Entries of `ROOM`.
pub const TABLES: usize = 2;

/// A 5-tuple of IPv4 in 16 bytes: the key of `FLOWS`, which every packet of a pod's is looked for in. Two rounds of the kernel's hash, where
/// a [`Flow`] takes four.
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

/// `BEGINNINGS`: a flow's first packet, as it is to leave if no rule of the host does anything to it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Beginning {
    /// Its flow.
    pub flow: Flow,
    /// What else a rule may change: a sum of traffic class, time to live, length, and of TCP the whole header.
    pub imprint: u32,
    /// The link by which the kernel's routes lead (ifindex); 0: none is known.
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

/// `FLOWS`: what was found out about a flow that goes past the host stack, so that its next packets need not ask again. All of it can be
/// found out again, and is: an entry counts for [`KNOWN_FLOW_JIFFIES`], and as long as [`Self::epochs`] is the sum of `EPOCHS` over
/// [`Self::slots`].
///
/// An entry says how its packets come, what is rewritten of them, and which way they leave. Each says so by itself: which
/// of them go together is not the entry's matter.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct KnownFlow {
    /// The key once more. Elements of an LRU are used again at once, and who has read an entry sees here whether it still was the same one
    /// at the end.
    pub key: FlowKey,
    /// The wrapping sum of the numbers in [`Self::slots`] when the flow was learnt.
    pub epochs: u32,
    /// When it was asked: the kernel's jiffies, their lower half.
    pub asked: u32,
    /// What the flow depends on: see [`crate::epoch`].
    pub slots: [u16; FLOW_SLOTS],
    /// The link by which its packets come.
    pub from: u32,
    /// The link by which they leave: an uplink, or the host side of a pod's veth pair.
    pub to: u32,
    /// The largest IP packet, bytes, that follows the entry; without the tunnel's headers.
    pub mtu: u32,
    /// The link address that the sender of the flow's first packet had.
    pub sender_mac: Mac,
    /// `FLOW_*` bits.
    pub flags: u8,
    /// `LEAVES_*`.
    pub leaves: u8,
    /// Link addresses of a frame into a pod: its own address on its link, and its gateway's. Else zeros.
    pub macs: Macs,
    /// Where its packets come from after rewriting.
    pub source: Quad,
    /// Where they go after rewriting.
    pub destination: Quad,
    /// After rewriting, network order. 0 in an entry for many flows ([`Flow::destination_key`]): each has its own.
    pub source_port: Be16,
    /// After rewriting, network order.
    pub destination_port: Be16,
    /// What its packets are counted as: a number of [`crate::reason::Path`].
    pub path: u16,
    /// Explicit padding.
    pub reserved: [u8; 2],
    /// Out by an uplink: the router, or the node or host itself where there is none.
    pub next_hop: NextHop,
    /// Of what comes or leaves in the tunnel.
    pub tunnel: Tunnel,
    /// Explicit padding.
    pub reserved2: [u8; 4],
}

/// The neighbour that packets are handed to, as the kernel takes it (`struct bpf_redir_neigh`). A packet of one family
/// may go by a router of the other.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct NextHop {
    /// [`FAMILY_IPV4`], [`FAMILY_IPV6`]; [`FAMILY_UNKNOWN`]: the kernel looks for the route.
    pub family: u32,
    /// In memory in network order; of IPv4 the first word.
    pub address: [u32; 4],
}

impl NextHop {
    /// It is not known.
    pub const UNKNOWN: Self = Self { family: FAMILY_UNKNOWN, address: [0; 4] };

    /// One of IPv4.
    #[inline(always)]
    pub const fn v4(address: [u8; 4]) -> Self {
        Self { family: FAMILY_IPV4, address: [u32::from_ne_bytes(address), 0, 0, 0] }
    }

    /// Its IPv4 address; `None` of another family.
    #[inline(always)]
    pub const fn ipv4(&self) -> Option<Addr> {
        match self.family {
            FAMILY_IPV4 => Some(Addr::from_v4(self.address[0].to_ne_bytes())),
            _ => None,
        }
    }
}

/// In [`NextHop::family`].
pub const FAMILY_UNKNOWN: u32 = 0;
/// `AF_INET`.
pub const FAMILY_IPV4: u32 = 2;
/// `AF_INET6`.
pub const FAMILY_IPV6: u32 = 10;

/// Both ends of the tunnel on the underlay, and what the headers of packets into it have besides.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Tunnel {
    /// This node's address. Unspecified where nothing is sent.
    pub here: Addr,
    /// The other node's.
    pub there: Addr,
    /// Of the outer header, network order.
    pub source_port: Be16,
    /// Destination of the inner frame.
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

/// How long an entry of `FLOWS` counts: a quarter of a second where the kernel ticks 1000 times a second, a second with 250. What
/// the kernel knows (routes, path MTU) is asked again after that.
pub const KNOWN_FLOW_JIFFIES: u32 = 256;
/// In [`KnownFlow::flags`]: only packets with [`KnownFlow::sender_mac`] follow the entry.
pub const FLOW_OF_SENDER: u8 = 1;
/// Its packets come in the tunnel, from [`Tunnel::there`]; the key is the inner flow. Without it they come bare.
pub const FLOW_IN_TUNNEL: u8 = 2;
/// Source and source port are rewritten.
pub const FLOW_REWRITES_SOURCE: u8 = 4;
/// Destination and destination port are rewritten.
pub const FLOW_REWRITES_DESTINATION: u8 = 8;
/// In [`KnownFlow::leaves`]: into a pod, with [`KnownFlow::macs`].
pub const LEAVES_INTO_POD: u8 = 1;
/// Out by an uplink, to [`KnownFlow::next_hop`].
pub const LEAVES_BY_UPLINK: u8 = 2;
/// The same inside [`KnownFlow::tunnel`].
pub const LEAVES_IN_TUNNEL: u8 = 3;

/// `FRONTENDS`: where a service of this node is reached.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Frontend {
    /// An address of this node, or [`Addr::UNSPECIFIED`] for each of them.
    pub address: Addr,
    /// Network order.
    pub port: Be16,
    /// IP protocol number: TCP or UDP.
    pub protocol: u8,
    /// Explicit padding, zero: part of the key.
    pub reserved: u8,
}

/// Who answers at a [`Frontend`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct Backend {
    /// A pod of this node.
    pub address: Addr,
    /// Network order.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `REDIRECTED_SOCKETS`: a socket of this node's own processes, and the pod that it was pointed at.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct RedirectedSocket {
    /// The kernel's number of the socket; never reused while the system runs.
    pub cookie: u64,
    /// The pod.
    pub address: Addr,
    /// The pod's port, network order.
    pub port: Be16,
    /// Explicit padding, zero: part of the key.
    pub reserved: [u8; 6],
}

/// Where a process believes that its socket sends.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct SocketAddress {
    /// An address of this node, 127.0.0.0/8 included.
    pub address: Addr,
    /// Network order.
    pub port: Be16,
    /// Explicit padding.
    pub reserved: [u8; 2],
}

/// `DROPS` and `TRAFFIC`: what was counted under one reason or path.
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
    /// Last of them; host order.
    pub snat_port_last: u16,
    /// First port of Kubernetes' NodePort range, which is never taken for a translated flow; host order.
    pub node_port_first: u16,
    /// Last of them; host order.
    pub node_port_last: u16,
    /// `ASK_*`.
    pub ask: u16,
    /// The network namespace of this node: processes elsewhere are none of its own.
    pub netns_cookie: u64,
}

/// Read-only data of the object, written at load: where the running kernel's `struct sk_buff` has
/// the fields that no context of a program shows. A program reads those of a checksum at once: they lie
/// within [`SKB_WINDOW`] bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(any(test, feature = "std"), derive(Debug))]
pub struct SkbLayout {
    /// The window's first byte, from the beginning of the structure.
    pub window: u16,
    /// The lower bit of `ip_summed`, which has two; in bits of the window.
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
    /// `end`, 32 bits, where `struct skb_shared_info` begins behind `head`; in bytes of the structure.
    pub end: u16,
    /// `gso_type` of `struct skb_shared_info`, 32 bits; in bytes of that structure.
    pub gso_type: u16,
}

/// Bytes of the window of [`SkbLayout`].
pub const SKB_WINDOW: usize = 64;

/// The host's rules see the first packet of one of a pod's connections to a port of the world, and none of the others that begin within
/// [`KNOWN_FLOW_JIFFIES`].
pub const ASK_EACH_DESTINATION: u16 = 0;
/// The host's rules see the first packet of each.
pub const ASK_EACH_CONNECTION: u16 = 1;

/// Pod packets travel between nodes inside VXLAN.
pub const MODE_VXLAN: u16 = 0;
/// Pod packets travel between nodes as they are.
pub const MODE_DIRECT: u16 = 1;

/// A remote pod's bare packet may come from any link address.
pub const LINK_ADDRESSES_ANY: u16 = 0;
/// It must come from its node's link address, if the kernel has a neighbour entry for that node.
pub const LINK_ADDRESSES_CHECKED: u16 = 1;

/// Types that the kernel and user space copy byte by byte, each with its size.
macro_rules! plain {
    ($($type:ty: $size:expr,)*) => { $(
        const _: () = assert!(size_of::<$type>() == $size);
        #[cfg(feature = "aya")]
        #[expect(unsafe_code, reason = "aya's marker for types that any bytes make a valid value of")]
        // SAFETY: `repr(C)`, integers and byte arrays only. The size is the sum of the fields'
        // sizes, so there is no padding.
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
    Flow: 40,
    StackFlow: 8,
    FragmentKey: 40,
    FragmentPorts: 8,
    InboundFlow: 8,
    Translation: 64 + EARLIER,
    KnownFlow: 144,
    FlowKey: 16,
    NextHop: 20,
    Tunnel: 40,
    Beginning: 56,
    Macs: 12,
    Frontend: 20,
    Holder: 20,
    Backend: 20,
    RedirectedSocket: 32,
    SocketAddress: 20,
    Count: 16,
    SkbLayout: 18,
    Config: 32,
}
