//! Lookups of known flows.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FLOW_IN_TUNNEL, FlowKey, KnownFlow, Macs, NextHop},
    addr::Addr,
    flow::protocol,
    nat::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use crate::{
    maps,
    packet::{Ip, Parsed, Plain, Skb, ethertype},
};

/// Returns a pod's packet and its known flow. Returns `None` unless the packet is plain, and comes
/// by the link and from the link address in the flow's entry.
#[inline(always)]
pub fn of_pod(ctx: &TcContext) -> Option<(Plain, &'static KnownFlow)> {
    let plain = Plain::of(ctx)?;
    let known = maps::known_flow(&plain.key())?;
    (known.from == ctx.ifindex() && plain.is_from(&known.sender_mac)).then_some((plain, known))
}

/// Returns the link and the link addresses by which an inner packet from another node reaches its
/// pod, if its flow is known.
#[inline(always)]
pub fn from_tunnel(ctx: &TcContext, packet: &mut Parsed, sender: &Addr) -> Option<(u32, Macs)> {
    let key = packet.flow.key();
    let known = of(ctx, packet, &key)?;
    if known.flags & FLOW_IN_TUNNEL == 0 || known.tunnel.there != *sender {
        return None;
    }
    let way = (known.to, known.macs);
    maps::is_still_in_place(known, &key).then_some(way)
}

/// The known destination of a pod's connection: the host's rules lately let other connections to it
/// pass unchanged.
pub struct Destination {
    /// The uplink to leave by.
    pub uplink: u32,
    /// The router, or the destination itself.
    pub next_hop: NextHop,
    /// The address that replaces the pod's.
    pub source: Addr,
    /// When the host's rules were asked: jiffies.
    pub asked: u32,
}

/// Returns what is known of all connections from a pod to one address and port. The packet is plain
/// TCP, or begins or ends a connection.
#[inline(always)]
pub fn destination_of(ctx: &TcContext, packet: &Parsed) -> Option<Destination> {
    let headers = &packet.headers;
    let is_odd = packet.tcp_flags & TCP_SYN != 0 && packet.tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST) != 0;
    if headers.ip.protocol != protocol::TCP || !packet.is_whole() || headers.ttl() <= 1 || is_odd {
        return None;
    }
    let key = packet.flow.destination_key();
    let known = maps::known_flow(&key)?;
    if known.from != ctx.ifindex()
        || known.sender_mac != headers.source_mac
        || packet.wire_length(ctx) > known.mtu
    {
        return None;
    }
    let found = Destination {
        uplink: known.to,
        next_hop: known.next_hop,
        source: known.source.address(),
        asked: known.asked,
    };
    maps::is_still(known, &key).then_some(found)
}

/// Returns the known flow of a packet. `key`: the flow's key.
#[inline(always)]
pub(super) fn of(ctx: &TcContext, packet: &Parsed, key: &FlowKey) -> Option<&'static KnownFlow> {
    if !is_plain(packet) || packet.headers.ttl() <= 1 {
        return None;
    }
    maps::known_flow(key).filter(|known| known.from == ctx.ifindex())
}

/// Returns whether a packet is IPv4 with TCP or UDP in the middle of its flow, without fragments
/// and IP options. `FLOWS` has no room for the addresses of IPv6.
#[inline(always)]
pub(super) fn is_plain<I: Ip>(packet: &Parsed<I>) -> bool {
    I::ETHERTYPE == ethertype::IPV4
        && packet.is_whole()
        && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
}
