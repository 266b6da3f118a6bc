//! Events: what user space is told of single packets.

use aya_ebpf::programs::{TcContext, XdpContext};
use podwire_common::{
    abi::{Flow, TRANSLATION_RESERVATION},
    addr::{Addr, Be16, Quad},
    event::{Event, Kind, VERSION},
    flow::protocol,
    reason::{Drop, Hook, Path},
};

use crate::{
    maps,
    packet::{
        ETHERNET_LENGTH, Fragment, Ip, Ipv4, Ipv6, Parsed, Place, Skb, XdpHeaders, ethertype, load_xdp,
    },
};

/// The time of a drop of which the budget has not been asked yet.
const LATER: u64 = 0;
/// Bytes of the headers of UDP and VXLAN.
const TUNNEL_HEADERS: u32 = 16;
/// The place of the inner frame of a packet that is no tunnel packet.
const NO_TUNNEL: u32 = 0;

/// Begins the event of a packet, if somebody listens and the packet may be the first of its flow.
/// Call it before the packet leaves traces in the tables. The decision's code
/// ([`finish`](crate::verdict::finish)) ends the event.
#[inline(always)]
pub fn begin<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) {
    if maps::is_listened_to() {
        begin_apart(ctx, packet);
    }
}

// Not inlined: its key would take stack in the caller.
#[inline(never)]
fn begin_apart<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) {
    let flow = &packet.flow;
    let is_first = match flow.protocol {
        _ if packet.is_error || matches!(packet.fragment_part(), Fragment::Later) => false,
        protocol::TCP => packet.begins_connection(),
        // Only a request has an identifier as its source port.
        icmp if icmp == I::ICMP && flow.source_port == Be16::ZERO => false,
        _ => !maps::is_noted::<I::FlowAddr>(flow),
    };
    if !is_first {
        return;
    }
    let Some(event) = maps::new_event() else { return };
    event.time = maps::now();
    (event.link, event.length, event.version) = (ctx.ifindex(), ctx.bytes(), VERSION);
    event.flow = *flow;
    event.ethertype = Be16::new(I::ETHERTYPE);
    ctx.set_begun(event.time as u32);
}

/// Writes the event that [`begin`] began for a packet, if the packet was the first of its flow.
#[inline(always)]
pub fn of_verdict(ctx: &TcContext) {
    let Some(event) = maps::begun_event() else { return };
    // A packet may carry a mark that it got at another hook.
    if event.time as u32 != ctx.begun() || event.version != VERSION {
        return;
    }
    // It has an end, whatever comes.
    event.version = 0;
    let (path, hook) = ctx.note();
    let is_noted = match event.flow.protocol {
        // Nothing else is the first packet of these.
        protocol::TCP | protocol::ICMP | protocol::ICMPV6 => true,
        _ if event.flow.source.is_v4() => maps::is_noted::<Quad>(&event.flow),
        _ => maps::is_noted::<Addr>(&event.flow),
    };
    if !is_noted {
        return;
    }
    (event.outcome, event.hook, event.kind) = (path as u16, hook as u8, Kind::Flow as u8);
    // On its way to the stack a packet is as the pod has sent it.
    if path != Path::ToStack as u32 {
        set_translation(event);
    }
    if maps::listening().kinds >> (event.kind & 31) & 1 != 0 && is_wanted(event) {
        event.endpoint = endpoint_of(&event.flow, &event.translated);
        event.version = VERSION;
        maps::write_verdict(event);
        event.version = 0;
    }
}

#[inline(always)]
fn set_translation(event: &mut Event) {
    let Some(entry) = maps::translation(&event.flow) else { return };
    let half = entry.get();
    if half.reply != 0 || half.kind == TRANSLATION_RESERVATION {
        return;
    }
    event.translation = half.kind;
    event.kind = Kind::Translation as u8;
    event.translated = Flow {
        source: half.source,
        destination: half.destination,
        source_port: half.source_port,
        destination_port: half.destination_port,
        ..event.flow
    };
}

/// Returns the number of the pod of this node that sends a flow, or else of the pod that gets it.
#[inline(always)]
fn endpoint_of(flow: &Flow, translated: &Flow) -> u32 {
    let of = |address| maps::endpoint(address).map(|endpoint| endpoint.id);
    if let Some(id) = of(&flow.source) {
        return id;
    }
    of(if translated.protocol == 0 { &flow.destination } else { &translated.destination }).unwrap_or(0)
}

/// Writes the event of a dropped packet, unless no listener wants it or the reason's budget is
/// used.
#[inline(always)]
pub fn of_drop(ctx: &TcContext, reason: u32, hook: u32) {
    let Some(time) = begin_drop(reason) else { return };
    let Some(event) = new_drop(hook, reason, ctx.ifindex(), ctx.bytes()) else { return };
    describe_all(ctx, event);
    write(event, reason, time);
}

/// Writes a packet that comes to a hook, if somebody wants it.
#[inline(always)]
pub fn of_packet(ctx: &TcContext, hook: u32) {
    let Some(packet) = maps::new_packet() else { return };
    let event = &mut packet.event;
    event.time = maps::now();
    (event.link, event.length) = (ctx.ifindex(), ctx.bytes());
    (event.version, event.kind, event.hook) = (VERSION, Kind::Packet as u8, hook as u8);
    describe_all(ctx, event);
    if !is_wanted(event) {
        return;
    }
    if let Ok(captured) = ctx.load_start(&mut packet.data) {
        packet.captured = captured;
        maps::write_packet(packet);
    }
}

/// Sets the 5-tuples of an event, as far as the packet has them.
#[inline(always)]
fn describe_all(ctx: &TcContext, event: &mut Event) {
    event.ethertype = Be16::new(ctx.ethertype());
    let inner = match ctx.ethertype() {
        ethertype::IPV4 => describe::<Ipv4>(ctx, event),
        ethertype::IPV6 => describe::<Ipv6>(ctx, event),
        _ => NO_TUNNEL,
    };
    if inner != NO_TUNNEL {
        describe_inner(ctx, inner, &mut event.inner);
    }
}

/// Does the same for a tunnel packet that an XDP program drops.
#[inline(always)]
pub fn of_xdp_drop(ctx: &XdpContext, reason: Drop) {
    let reason = reason as u32;
    let Some(time) = begin_drop(reason) else { return };
    let (link, bytes) = (ctx.ingress_ifindex() as u32, (ctx.data_end() - ctx.data()) as u32);
    let Some(event) = new_drop(Hook::UplinkXdp as u32, reason, link, bytes) else { return };
    match load_xdp::<Ipv4>(ctx) {
        Some(headers) if headers.outer.is_ip() => describe_xdp(&headers, event),
        _ => {
            if let Some(headers) = load_xdp::<Ipv6>(ctx) {
                describe_xdp(&headers, event);
            }
        }
    }
    write(event, reason, time);
}

/// Returns the time of a drop's event, or [`LATER`]. `None`: the drop has no event.
#[inline(always)]
fn begin_drop(reason: u32) -> Option<u64> {
    let listening = maps::listening();
    if !listening.wants_drop(reason) {
        return None;
    }
    // A filter comes first: what nobody wants must not use the budget. Without one the budget comes
    // first, because it is cheaper than reading the packet.
    if listening.is_filter() { Some(LATER) } else { maps::take_from_budget(reason) }
}

/// Writes the event of a drop. `time`: [`LATER`], if a filter has to decide first.
#[inline(always)]
fn write(event: &mut Event, reason: u32, mut time: u64) {
    if time == LATER {
        if !is_wanted(event) {
            return;
        }
        match maps::take_from_budget(reason) {
            Some(now) => time = now,
            None => return,
        }
    }
    event.time = time;
    event.endpoint = endpoint_of(&event.flow, &event.translated);
    maps::write_event(event, reason);
}

// Not inlined: the compiler keeps much of the filter on the stack.
#[inline(never)]
fn is_wanted(event: &Event) -> bool {
    maps::listening().wants_packet(event)
}

/// Begins the event of a drop, without addresses.
#[inline(always)]
fn new_drop(hook: u32, reason: u32, link: u32, length: u32) -> Option<&'static mut Event> {
    let event = maps::new_event()?;
    (event.link, event.length) = (link, length);
    (event.outcome, event.version) = (reason as u16, VERSION);
    (event.kind, event.hook) = (Kind::Drop as u8, hook as u8);
    Some(event)
}

/// Sets the addresses and ports of a packet that an XDP program has found to be UDP.
#[inline(always)]
fn describe_xdp<I: Ip>(headers: &XdpHeaders<I>, event: &mut Event) {
    let udp = &headers.udp;
    event.flow = Flow::new(
        headers.outer.source_address(),
        headers.outer.destination_address(),
        Be16 { bytes: [udp[0], udp[1]] },
        Be16 { bytes: [udp[2], udp[3]] },
        protocol::UDP,
    );
    event.ethertype = Be16::new(I::ETHERTYPE);
}

/// Sets the packet's addresses and ports, as far as its headers show them. Returns where the frame
/// inside a tunnel packet begins, or [`NO_TUNNEL`].
// Not inlined, as `describe_inner_of`: called one after the other, their packets share the stack.
#[inline(never)]
fn describe<I: Ip>(ctx: &TcContext, event: &mut Event) -> u32 {
    let mut place = Place::<I>::new();
    let is_bare = event.hook == Hook::ToBareUplink as u8;
    let loaded = match if is_bare { place.load_bare(ctx) } else { place.load(ctx) } {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return NO_TUNNEL,
    };
    event.flow.source = loaded.headers().source_address();
    event.flow.destination = loaded.headers().destination_address();
    let Ok(packet) = loaded.parse(ctx) else { return NO_TUNNEL };
    set_transport(packet, &mut event.flow);
    let is_tunnel = !maps::is_direct()
        && event.flow.protocol == protocol::UDP
        && event.flow.destination_port == maps::vxlan_port();
    if is_tunnel { packet.transport_offset() + TUNNEL_HEADERS } else { NO_TUNNEL }
}

/// Sets the addresses and ports of the frame inside a tunnel packet, which begins at `base`.
#[inline(always)]
fn describe_inner(ctx: &TcContext, base: u32, inner: &mut Flow) {
    let ethertype = base + ETHERNET_LENGTH - size_of::<Be16>() as u32;
    match ctx.load_at::<Be16>(ethertype).map(Be16::get) {
        Ok(ethertype::IPV4) => describe_inner_of::<Ipv4>(ctx, base, inner),
        Ok(ethertype::IPV6) => describe_inner_of::<Ipv6>(ctx, base, inner),
        _ => {}
    }
}

#[inline(never)]
fn describe_inner_of<I: Ip>(ctx: &TcContext, base: u32, inner: &mut Flow) {
    let mut place = Place::<I>::new();
    let loaded = match place.load_inner(ctx, base) {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return,
    };
    inner.source = loaded.headers().source_address();
    inner.destination = loaded.headers().destination_address();
    let Ok(packet) = loaded.parse(ctx) else { return };
    set_transport(packet, inner);
}

#[inline(always)]
fn set_transport<I: Ip>(packet: &Parsed<I>, flow: &mut Flow) {
    flow.protocol = packet.protocol();
    // The 5-tuple of an ICMP error is that of the packet which it quotes.
    if !packet.is_error {
        flow.source_port = packet.flow.source_port;
        flow.destination_port = packet.flow.destination_port;
    }
}
