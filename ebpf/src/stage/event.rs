//! Events: what user space is told of single packets.

use aya_ebpf::programs::{TcContext, XdpContext};
use podwire_common::{
    addr::{Addr, Be16},
    event::{Event, Kind, VERSION},
    flow::protocol,
    reason::{Drop, Hook},
};

use crate::{
    maps,
    packet::{Ip, Ipv4, Ipv6, Place, Skb, XdpHeaders, ethertype, load_xdp},
};

/// Writes the event of a dropped packet, unless the reason's budget is used.
#[inline(always)]
pub fn of_drop(ctx: &TcContext, reason: u32, hook: u32) {
    let Some(time) = maps::begin_event(reason) else { return };
    let mut event = drop_at(time, hook, reason, ctx.ifindex(), ctx.bytes());
    event.ethertype = Be16::new(ctx.ethertype());
    match ctx.ethertype() {
        ethertype::IPV4 => describe::<Ipv4>(ctx, &mut event),
        ethertype::IPV6 => describe6(ctx, &mut event),
        _ => {}
    }
    maps::write_event(&event, reason);
}

/// Does the same for a tunnel packet that an XDP program drops.
#[inline(always)]
pub fn of_xdp_drop(ctx: &XdpContext, reason: Drop) {
    let reason = reason as u32;
    let Some(time) = maps::begin_event(reason) else { return };
    let bytes = (ctx.data_end() - ctx.data()) as u32;
    let mut event = drop_at(time, Hook::UplinkXdp as u32, reason, ctx.ingress_ifindex() as u32, bytes);
    match load_xdp::<Ipv4>(ctx) {
        Some(headers) if headers.outer.is_ip() => describe_xdp(&headers, &mut event),
        _ => {
            if let Some(headers) = load_xdp::<Ipv6>(ctx) {
                describe_xdp(&headers, &mut event);
            }
        }
    }
    maps::write_event(&event, reason);
}

/// Returns an event without addresses.
#[inline(always)]
fn drop_at(time: u64, hook: u32, reason: u32, link: u32, bytes: u32) -> Event {
    Event {
        time,
        source: Addr::UNSPECIFIED,
        destination: Addr::UNSPECIFIED,
        link,
        length: bytes,
        source_port: Be16::ZERO,
        destination_port: Be16::ZERO,
        ethertype: Be16::ZERO,
        outcome: reason as u16,
        version: VERSION,
        kind: Kind::Drop as u8,
        hook: hook as u8,
        protocol: 0,
        reserved: [0; 4],
    }
}

/// Sets the addresses and ports of a packet that an XDP program has found to be UDP.
#[inline(always)]
fn describe_xdp<I: Ip>(headers: &XdpHeaders<I>, event: &mut Event) {
    let udp = &headers.udp;
    event.source = headers.outer.source_address();
    event.destination = headers.outer.destination_address();
    event.source_port = Be16 { bytes: [udp[0], udp[1]] };
    event.destination_port = Be16 { bytes: [udp[2], udp[3]] };
    event.ethertype = Be16::new(I::ETHERTYPE);
    event.protocol = protocol::UDP;
}

// Not inlined: the packet would take stack beside the one of IPv4.
#[inline(never)]
fn describe6(ctx: &TcContext, event: &mut Event) {
    describe::<Ipv6>(ctx, event);
}

/// Sets the packet's addresses and ports, as far as its headers show them.
#[inline(always)]
fn describe<I: Ip>(ctx: &TcContext, event: &mut Event) {
    let mut place = Place::<I>::new();
    let is_bare = event.hook == Hook::ToBareUplink as u8;
    let loaded = match if is_bare { place.load_bare(ctx) } else { place.load(ctx) } {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return,
    };
    event.source = loaded.headers().source_address();
    event.destination = loaded.headers().destination_address();
    let Ok(packet) = loaded.parse(ctx) else { return };
    event.protocol = packet.protocol();
    // The 5-tuple of an ICMP error is that of the packet which it quotes.
    if !packet.is_error {
        event.source_port = packet.flow.source_port;
        event.destination_port = packet.flow.destination_port;
    }
}
