//! Pods' flows to the world bear the address of the uplink that the route chose; this node's own flows keep theirs.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Beginning, Endpoint, NODE_LOCAL, STATE_REPLIED, TRANSLATION_HOST, TRANSLATION_RESERVATION,
        TRANSLATION_SNAT,
    },
    addr::{Addr, Be16},
    flow::protocol,
    nat,
    reason::{Drop, Path},
};

use super::{direct, fastpath, flow, local, source, too_big, translation};
use crate::{
    maps::{self, TranslationEntry},
    packet::{
        Fragment, Ipv4, Lookup, Skb, Way, belongs_to_socket, decrement_ttl, imprint, leave,
        readdress_destination, readdress_source, source_towards,
    },
    subprogram,
    verdict::{Outcome, Verdict},
};

/// A pod's packet for the world. The host's rules have seen the first one of its flow and let it pass as it was: then it goes past
/// them, translated here; otherwise up the stack.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &mut Ipv4, endpoint: &Endpoint) -> Outcome {
    let begins = packet.begins_connection();
    // What nobody has answered yet begins anew with each packet: who writes the host's rules later, as kube-proxy does while a node
    // starts, has connection tracking forget such flows of UDP, so that they are seen by the new rules.
    let answered = translation::of(packet).filter(|entry| !begins && entry.get().state & STATE_REPLIED != 0);
    match answered {
        Some(entry) if entry.get().past_stack != 0 && packet.headers.ttl > 1 => {
            return past_stack(ctx, packet, endpoint, &entry);
        }
        // Connection tracking has seen others of a TCP connection that is not known here: it has to see all.
        None if (begins || packet.flow.protocol != protocol::TCP) && !packet.is_error => {
            let imprint = imprint(ctx, packet, packet.headers.ttl.wrapping_sub(1));
            maps::note_beginning(&Beginning { flow: packet.flow, imprint });
            ctx.set_beginning();
        }
        _ => {}
    }
    Ok(Verdict::stack(Path::ToStack))
}

/// A packet of a pod's connection to where the host's rules have lately let another one's first packet pass as it was: this one goes past
/// them from its own first packet on. [`Verdict::UNDECIDED`] for anything else.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::SnatPortsExhausted`], [`Drop::TranslationShareUsed`],
/// [`Drop::TranslationsFull`].
#[inline(never)]
pub fn to_known_destination(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    let Some(destination) = fastpath::destination_of(ctx, packet) else {
        return Ok(Verdict::UNDECIDED);
    };
    let uplink = destination.uplink;
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        if half.kind != TRANSLATION_SNAT || half.past_stack == 0 || half.ifindex != uplink {
            return Ok(Verdict::UNDECIDED);
        }
        translation::touch(&entry, packet);
        readdress_source(ctx, packet, &half.source, half.source_port)?;
    } else {
        if !packet.begins_connection() {
            return Ok(Verdict::UNDECIDED);
        }
        let mut to = translation::begin(TRANSLATION_SNAT, uplink, &packet.flow);
        to.source = destination.source;
        (to.past_stack, to.asked) = (1, destination.asked);
        subprogram::establish(ctx, &packet.flow, &mut to)?;
        // Another CPU was first with the same flow, and has asked them.
        if to.past_stack == 0 || to.ifindex != uplink {
            return Ok(Verdict::UNDECIDED);
        }
        readdress_source(ctx, packet, &to.source, to.source_port)?;
    }
    Ok(Verdict::redirect(Path::SnatOut, leave(ctx, uplink, destination.next_hop)))
}

#[inline(always)]
fn past_stack(ctx: &TcContext, packet: &mut Ipv4, endpoint: &Endpoint, entry: &TranslationEntry) -> Outcome {
    let to = entry.get();
    let mut way = way_of_pod(packet, endpoint, packet.wire_length(ctx));
    match way.look_up_any(ctx) {
        Lookup::Found if way.ifindex == to.ifindex => {
            fastpath::learn_world_out(ctx, packet, endpoint, &way, entry)
        }
        // Before it is translated: the pod knows its own packet only.
        Lookup::TooBig if too_big::can_answer(packet) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // The stack cuts what may be cut and is larger than the link; but of TCP connection tracking would let nothing pass.
        Lookup::TooBig if direct::exceeds_link(ctx, packet, to.ifindex) => {
            return match packet.flow.protocol {
                protocol::TCP => too_big::answer(ctx, packet, endpoint, way.length),
                _ => Ok(Verdict::stack(Path::ToStack)),
            };
        }
        // What may be cut is cut by the router whose link is too small.
        Lookup::TooBig => way.ifindex = to.ifindex,
        // By another uplink its flow begins anew.
        _ => return Ok(Verdict::stack(Path::ToStack)),
    }
    translation::touch(entry, packet);
    if packet.is_whole() {
        readdress_source(ctx, packet, &to.source, to.source_port)?;
    } else {
        decrement_ttl(ctx, &packet.headers, 0)?;
        subprogram::translate(ctx, packet, to)?;
    }
    Ok(Verdict::redirect(Path::SnatOut, way.leave(ctx)))
}

/// The way that the kernel's routes have for a pod's packet.
#[inline(always)]
fn way_of_pod(packet: &Ipv4, endpoint: &Endpoint, length: u32) -> Way {
    Way::new(endpoint.ifindex, packet.headers.source_address(), packet.headers.destination_address(), length)
}

/// Whether the host's rules have let the first packet of a pod's flow pass as it was, by the way that the programs would find for the
/// others: no other destination, no mark, no other link or router, and nothing else about the packet. Where they have not, they have to see
/// the whole flow.
#[inline(never)]
fn is_untouched(ctx: &TcContext, packet: &Ipv4) -> bool {
    if !ctx.is_unmarked_beginning()
        || !matches!(packet.headers.fragment_part(), Fragment::Whole)
        || !maps::is_noted_beginning(&packet.flow, imprint(ctx, packet, packet.headers.ttl))
    {
        return false;
    }
    let Some(endpoint) = maps::endpoint(&packet.headers.source_address()) else {
        return false;
    };
    let mut way = way_of_pod(packet, endpoint, 0);
    way.look_up_any(ctx) == Lookup::Found
        && way.ifindex == ctx.ifindex()
        && way.next_hop_mac == packet.headers.destination_mac
}

/// Translates the source of a pod's packet that leaves for the world.
///
/// # Errors
/// The reason why it cannot be translated: it never leaves with the pod's address unless it is meant to.
#[inline(never)]
pub fn out(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    flow::complete(packet)?;
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        // Otherwise the route has chosen another uplink: replies to the old one are lost anyway. An ICMP error ends nothing: it
        // speaks of the flow that its receiver knows, by whatever uplink.
        if half.kind == TRANSLATION_SNAT && (half.ifindex == ctx.ifindex() || packet.is_error) {
            if ctx.is_beginning() {
                entry.set_past_stack(&packet.flow, is_untouched(ctx, packet));
                entry.set_asked();
            }
            translation::touch(&entry, packet);
            subprogram::translate(ctx, packet, half)?;
            return Ok(Verdict::stack(Path::SnatOut));
        }
        if half.kind == TRANSLATION_SNAT {
            translation::remove(&packet.flow, half);
        }
    }
    let idle = nat::idle_timeout(STATE_REPLIED, packet.flow.protocol) * 1_000_000_000;
    let destination = packet.headers.destination_address();
    // Only what a pod began is translated: a client outside is answered by the address that it asked. What a packet says by itself
    // needs no memory: anybody on the link can send something to a pod's own address.
    if (!packet.begins_connection() && maps::is_inbound_flow(&packet.flow, idle))
        || is_link_local(&destination)
        || maps::is_not_masqueraded(&destination)
    {
        return Ok(Verdict::stack(Path::Untranslated));
    }
    if packet.is_error || !translation::has_ports(packet) {
        return Err(Drop::SnatProtocolUnknown);
    }
    // It would leave with a node's address, which other nodes believe, and may reach one by an address that is in no list.
    if !maps::is_direct() && source::is_tunnel(packet) {
        return Err(Drop::VxlanFromPod);
    }
    let mut to = translation::begin(TRANSLATION_SNAT, ctx.ifindex(), &packet.flow);
    to.source = address_towards(ctx, &destination)?;
    to.past_stack = is_untouched(ctx, packet).into();
    to.asked = maps::jiffies();
    subprogram::establish(ctx, &packet.flow, &mut to)?;
    subprogram::translate(ctx, packet, &to)?;
    Ok(Verdict::stack(Path::SnatOut))
}

/// A packet of this node itself, or one that its rules have given its address: where a pod's flow has its 5-tuple, it gets another
/// source port; and nobody takes its own from it.
///
/// # Errors
/// As [`out`].
#[inline(never)]
pub fn host_out(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    if source::is_tunnel(packet) || flow::complete(packet).is_err() {
        return Ok(Verdict::PASS);
    }
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        // The node's own errors about translated flows quote what the pod knows, which nobody outside does.
        if half.kind == TRANSLATION_HOST || packet.is_error {
            translation::touch(&entry, packet);
            subprogram::translate(ctx, packet, half)?;
            return Ok(Verdict::stack(Path::HostSnatOut));
        }
        return Ok(Verdict::PASS);
    }
    if packet.is_error || !translation::has_ports(packet) {
        return Ok(Verdict::PASS);
    }
    match maps::translation(&packet.flow.reversed()) {
        None => {
            reserve(ctx, packet);
            Ok(Verdict::PASS)
        }
        Some(entry) => match entry.get().kind {
            TRANSLATION_RESERVATION => {
                let state =
                    nat::next_state(entry.get().state, packet.flow.protocol, packet.tcp_flags, false, true);
                entry.touch(packet.flow.protocol, state);
                Ok(Verdict::PASS)
            }
            kind @ (TRANSLATION_SNAT | TRANSLATION_HOST) => {
                let mut to = translation::begin(TRANSLATION_HOST, ctx.ifindex(), &packet.flow);
                match subprogram::establish(ctx, &packet.flow, &mut to) {
                    Ok(()) => {
                        subprogram::translate(ctx, packet, &to)?;
                        Ok(Verdict::stack(Path::HostSnatOut))
                    }
                    // There is room for one of the two only, and it is this node's.
                    Err(_) if kind == TRANSLATION_SNAT => {
                        translation::remove(&packet.flow.reversed(), entry.get());
                        Ok(Verdict::PASS)
                    }
                    Err(reason) => Err(reason),
                }
            }
            _ => Ok(Verdict::PASS),
        },
    }
}

/// Keeps the 5-tuple of a flow from being taken whose owner no lookup of sockets would find.
#[inline(never)]
fn reserve(ctx: &TcContext, packet: &Ipv4) {
    let flow = &packet.flow;
    let needed = match flow.protocol {
        // Only who asks has the identifier as its port.
        protocol::ICMP => flow.source_port != Be16::ZERO,
        // A connection is known by its first packet: what answers one that came from outside begins nothing. And what nobody is given
        // need not be kept.
        _ => {
            (flow.protocol != protocol::TCP || packet.begins_connection())
                && !translation::is_node_port(flow.source_port)
                && !belongs_to_socket(ctx, flow)
        }
    };
    if !needed {
        return;
    }
    if maps::node(&flow.source).is_none_or(|node| node.flags & NODE_LOCAL == 0) {
        return;
    }
    let reply = flow.reversed();
    let mut reservation = translation::begin(TRANSLATION_RESERVATION, ctx.ifindex(), &reply);
    reservation.reply = 1;
    if !translation::reserve(&reply, &reservation) {
        maps::count_path(Path::ReservationsFull, 0);
    }
}

/// The address that the node itself would send from by this uplink.
#[inline(always)]
fn address_towards(ctx: &TcContext, destination: &Addr) -> Result<Addr, Drop> {
    if let Some(address) = source_towards(ctx, destination) {
        return Ok(address);
    }
    match maps::uplink(ctx.ifindex()) {
        Some(uplink) if uplink.ipv4 != Addr::UNSPECIFIED => Ok(uplink.ipv4),
        _ => Err(Drop::SnatNoAddress),
    }
}

/// 169.254.0.0/16 (RFC 3927) is not routed: whoever answers there is the link's own.
#[inline(always)]
fn is_link_local(address: &Addr) -> bool {
    let quad = address.v4();
    quad[0] == 169 && quad[1] == 254
}

/// What becomes of a packet from the network that follows a translation of this node's or its pods' own flows.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn back(ctx: &TcContext, packet: &mut Ipv4, entry: &TranslationEntry) -> Outcome {
    let to = entry.get();
    if to.kind == TRANSLATION_RESERVATION {
        return Ok(Verdict::PASS);
    }
    if to.past_stack != 0
        && packet.headers.ttl > 1
        && let Some(endpoint) = maps::endpoint(&to.destination)
        // The sender of what does not fit the pod's link is told by the stack.
        && packet.wire_length(ctx) <= endpoint.mtu
    {
        fastpath::learn_world_in(ctx, packet, endpoint, entry);
        if packet.is_whole() {
            packet.headers.set_macs(endpoint.macs());
            readdress_destination(ctx, packet, &to.destination, to.destination_port)?;
            return Ok(Verdict::redirect(Path::SnatIn, local::into_endpoint(ctx, endpoint)));
        }
        decrement_ttl(ctx, &packet.headers, 0)?;
        subprogram::translate(ctx, packet, to)?;
        return local::hand_over(ctx, endpoint, Path::SnatIn);
    }
    subprogram::translate(ctx, packet, to)?;
    Ok(Verdict::stack(Path::SnatIn))
}
