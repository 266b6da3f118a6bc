//! What is known of a packet.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FLOW_IN_TUNNEL, FlowKey, KnownFlow, Macs, NextHop},
    addr::Addr,
    flow::protocol,
    nat::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use crate::{
    maps,
    packet::{Parsed, Plain, Skb},
};

/// A pod's packet that is a plain one, and what is known of its flow. The sender has been found to be the one that the flow is known of.
#[inline(always)]
pub fn of_pod(ctx: &TcContext) -> Option<(Plain, &'static KnownFlow)> {
    let plain = Plain::of(ctx)?;
    let known = maps::known_flow(&plain.key())?;
    (known.from == ctx.ifindex() && plain.is_from(&known.sender_mac)).then_some((plain, known))
}

/// The link and the addresses into the pod that an inner packet from another node is for.
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

/// Where a pod's connection leads to which the host's rules let all others pass as they were, the last one asked not long ago.
pub struct Destination {
    /// The uplink.
    pub uplink: u32,
    /// Its router, or the destination itself.
    pub next_hop: NextHop,
    /// What the pod's address becomes.
    pub source: Addr,
    /// When the rules were asked: jiffies.
    pub asked: u32,
}

/// What is known of all of a pod's connections to the address and port that a plain TCP packet goes to, or one that begins or ends a
/// connection.
#[inline(always)]
pub fn destination_of(ctx: &TcContext, packet: &Parsed) -> Option<Destination> {
    let headers = &packet.headers;
    let is_odd = packet.tcp_flags & TCP_SYN != 0 && packet.tcp_flags & (TCP_ACK | TCP_FIN | TCP_RST) != 0;
    if headers.protocol != protocol::TCP || !packet.is_whole() || headers.ttl <= 1 || is_odd {
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

/// What is known of a packet's flow. `key`: the flow's.
#[inline(always)]
pub(super) fn of(ctx: &TcContext, packet: &Parsed, key: &FlowKey) -> Option<&'static KnownFlow> {
    if !is_plain(packet) || packet.headers.ttl <= 1 {
        return None;
    }
    maps::known_flow(key).filter(|known| known.from == ctx.ifindex())
}

/// Whether a packet is TCP or UDP in the midst of its flow, without fragments and options.
#[inline(always)]
pub(super) fn is_plain(packet: &Parsed) -> bool {
    packet.is_whole() && packet.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
}
