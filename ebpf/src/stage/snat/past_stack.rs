//! Pods' packets to the world, as they come from the pod. They bypass the host's rules if the rules
//! have let the flow pass unchanged.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Beginning, Endpoint, LINK_WITHOUT_PROGRAMS, NETWORK_REFUSED, NETWORK_THROUGH_STACK, STATE_REPLIED,
        TRANSLATION_SNAT,
    },
    addr::{Be16, Mac},
    flow::{FlowAddr as _, protocol},
    reason::{Drop, Path},
};

use super::super::{direct, fastpath, fastpath::KnownIp, too_big, translation};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Fragment, Ip, Lookup, Parsed, Skb, Way, forward, imprint, leave},
    verdict::{Attempt, Decision, Outcome, Verdict},
};

/// Handles a pod's packet to the world. If the host's rules have let the first packet of its flow
/// pass unchanged, this packet is translated here and bypasses them. Otherwise it goes to the host
/// stack.
///
/// # Errors
/// [`Drop::LinkWithoutPrograms`], [`Drop::RewriteFailed`].
#[inline(never)]
pub fn from_pod<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, endpoint: &Endpoint) -> Outcome {
    let begins = packet.begins_connection();
    // An unanswered flow begins again with each packet. Other programs may write the host's rules
    // later, as kube-proxy does while a node starts. They then make conntrack forget such UDP
    // flows, so that the new rules see them.
    let answered = translation::of(packet).filter(|entry| !begins && entry.get().state & STATE_REPLIED != 0);
    match answered {
        Some(entry) if entry.get().past_stack != 0 && packet.headers.ttl() > 1 => {
            return past_stack(ctx, packet, endpoint, &entry);
        }
        // A TCP connection that is unknown here but not new stays with the stack: conntrack has
        // seen its earlier packets and must see all.
        None if (begins || packet.flow.protocol != protocol::TCP) && !packet.is_error => {
            begin(ctx, packet, endpoint)?;
        }
        _ => {}
    }
    Ok(Verdict::stack(Path::ToStack))
}

/// Sends a packet of a pod's connection to a known destination: the host's rules have lately let
/// another connection's first packet to it pass unchanged. This connection bypasses the rules from
/// its own first packet on. Returns [`Decision::NONE`] for all other packets.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::SnatPortsExhausted`], [`Drop::TranslationShareUsed`],
/// [`Drop::TranslationsFull`].
#[inline(never)]
pub fn to_known_destination<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Attempt {
    let Some(destination) = fastpath::destination_of(ctx, packet) else {
        return Ok(Decision::NONE);
    };
    let uplink = destination.uplink;
    let (source, port) = if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        if half.kind != TRANSLATION_SNAT || half.past_stack == 0 || half.ifindex != uplink {
            return Ok(Decision::NONE);
        }
        translation::touch(&entry, packet);
        (I::FlowAddr::of(&half.source), half.source_port)
    } else {
        if !packet.begins_connection() {
            return Ok(Decision::NONE);
        }
        let mut to = translation::begin(TRANSLATION_SNAT, uplink, &packet.flow);
        to.source = destination.source.address();
        (to.past_stack, to.asked) = (1, destination.asked);
        translation::establish::<I>(ctx, &packet.flow, &mut to)?;
        // Another CPU was first with the same flow, and has asked the host's rules.
        if to.past_stack == 0 || to.ifindex != uplink {
            return Ok(Decision::NONE);
        }
        (I::FlowAddr::of(&to.source), to.source_port)
    };
    readdress(ctx, packet, source, port)?;
    Ok(Verdict::redirect(Path::SnatOut, leave(ctx, uplink, &destination.next_hop)).into())
}

#[inline(always)]
fn past_stack<I: KnownIp>(
    ctx: &TcContext,
    packet: &mut Parsed<I>,
    endpoint: &Endpoint,
    entry: &TranslationEntry,
) -> Outcome {
    if asks_policies(packet) {
        // IPsec policies have been added: from now on the stack asks them.
        entry.set_past_stack::<I::FlowAddr>(&packet.flow, false);
        return Ok(Verdict::stack(Path::ToStack));
    }
    let to = entry.get();
    let mut way = way_of_pod(packet, endpoint, packet.wire_length(ctx));
    match way.look_up_any::<I>(ctx) {
        Lookup::Found if way.ifindex == to.ifindex => {
            fastpath::learn_world_out(ctx, packet, endpoint, &way, entry)
        }
        // Answer before the translation: the pod knows only its own packet.
        Lookup::TooBig if too_big::can_answer(packet, way.length) => {
            return too_big::answer(ctx, packet, endpoint, way.length);
        }
        // The stack fragments a packet that is larger than the link, if it may. But conntrack would
        // let no TCP packet of this flow pass, so the program answers a TCP packet itself.
        Lookup::TooBig if direct::exceeds_link(ctx, packet, to.ifindex) => {
            return match packet.flow.protocol {
                protocol::TCP => too_big::answer(ctx, packet, endpoint, way.length),
                _ => Ok(Verdict::stack(Path::ToStack)),
            };
        }
        // The router in front of the small link fragments the packet if it may.
        Lookup::TooBig => way.ifindex = to.ifindex,
        Lookup::Found if leads_out_bare(packet, &way) => {
            maps::note_refused(way.ifindex);
            return Err(Drop::LinkWithoutPrograms);
        }
        // The route leads by another uplink, where the flow begins again.
        _ => return Ok(Verdict::stack(Path::ToStack)),
    }
    translation::touch(entry, packet);
    if packet.is_whole() {
        readdress(ctx, packet, I::FlowAddr::of(&to.source), to.source_port)?;
    } else {
        forward(ctx, packet, to)?;
    }
    Ok(Verdict::redirect(Path::SnatOut, way.leave(ctx)))
}

// Not inlined: its values would take stack in both callers.
#[inline(never)]
fn readdress<I: Ip>(
    ctx: &TcContext,
    packet: &mut Parsed<I>,
    source: I::FlowAddr,
    port: Be16,
) -> Result<(), Drop> {
    I::readdress_source(ctx, packet, source, port)
}

/// Notes a flow's first packet, and the route that the kernel has for it.
///
/// # Errors
/// [`Drop::LinkWithoutPrograms`] when the packet would leave with the pod's address.
#[inline(never)]
fn begin<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, endpoint: &Endpoint) -> Result<(), Drop> {
    let mut way = way_of_pod(packet, endpoint, 0);
    let link = match way.look_up_any::<I>(ctx) {
        Lookup::Found if leads_out_bare(packet, &way) => {
            maps::note_refused(way.ifindex);
            return Err(Drop::LinkWithoutPrograms);
        }
        Lookup::Found => way.ifindex,
        _ => 0,
    };
    let imprint = imprint(ctx, packet, packet.headers.ttl().wrapping_sub(1));
    let (flow, next_hop_mac) = (packet.flow, way.next_hop_mac);
    maps::note_beginning(&Beginning { flow, imprint, link, next_hop_mac, reserved: [0; 2] });
    ctx.set_beginning();
    Ok(())
}

/// Returns whether a pod's packet to the world would leave by a link without programs, although it
/// is not meant to keep the pod's address.
#[inline(always)]
fn leads_out_bare<I: Ip>(packet: &Parsed<I>, way: &Way) -> bool {
    maps::link(way.ifindex).is_none_or(|link| link.kind == LINK_WITHOUT_PROGRAMS)
        && way.next_hop.address_of(I::FAMILY).is_none_or(|router| maps::endpoint(&router).is_none())
        && !maps::is_not_masqueraded(&packet.headers.destination_address())
}

/// Prepares the question for the route of a pod's packet.
#[inline(always)]
fn way_of_pod<I: Ip>(packet: &Parsed<I>, endpoint: &Endpoint, length: u32) -> Way {
    Way::new(endpoint.ifindex, packet.headers.source_address(), packet.headers.destination_address(), length)
}

/// Returns whether an IPsec policy may match a pod's packet to the world.
#[inline(always)]
fn asks_policies<I: Ip>(packet: &Parsed<I>) -> bool {
    maps::network(&packet.headers.destination_address()) & (NETWORK_THROUGH_STACK | NETWORK_REFUSED) != 0
}

/// Returns whether the host's rules have let the first packet of a pod's flow pass unchanged, by
/// the route that the programs would find for the other packets. That is the case if
///
/// - the destination is the same,
/// - the packet has no mark,
/// - link and router are the same,
/// - nothing else of the packet has changed.
///
/// Otherwise the rules must see the whole flow.
#[inline(never)]
pub(super) fn is_untouched<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> bool {
    if !ctx.is_unmarked_beginning()
        || !matches!(packet.fragment_part(), Fragment::Whole)
        || asks_policies(packet)
    {
        return false;
    }
    let Some(noted) = maps::noted_beginning(&packet.flow, imprint(ctx, packet, packet.headers.ttl())) else {
        return false;
    };
    let (link, mac) = (ctx.ifindex(), packet.headers.destination_mac);
    if noted.next_hop_mac != Mac::default() {
        return noted.link == link && noted.next_hop_mac == mac;
    }
    // The link has no link addresses, or the kernel has resolved the neighbour since.
    let Some(endpoint) = maps::endpoint(&packet.headers.source_address()) else {
        return false;
    };
    let mut way = way_of_pod(packet, endpoint, 0);
    way.look_up_any::<I>(ctx) == Lookup::Found && way.ifindex == link && way.next_hop_mac == mac
}
