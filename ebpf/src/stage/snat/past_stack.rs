//! Pods' packets for the world, as they come from the pod: past the host's rules where these have let the flow pass as it was.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Beginning, Endpoint, LINK_WITHOUT_PROGRAMS, NETWORK_REFUSED, NETWORK_THROUGH_STACK, STATE_REPLIED,
        TRANSLATION_SNAT,
    },
    addr::{Be16, Mac, Quad},
    flow::protocol,
    reason::{Drop, Path},
};

use super::super::{direct, fastpath, too_big, translation};
use crate::{
    maps::{self, TranslationEntry},
    packet::{
        Fragment, Lookup, Parsed, Skb, Way, decrement_ttl, imprint, leave, readdress_source, translate,
    },
    verdict::{Attempt, Decision, Outcome, Verdict},
};

/// A pod's packet for the world. The host's rules have seen the first one of its flow and let it pass as it was: then it goes past
/// them, translated here; otherwise up the stack.
///
/// # Errors
/// [`Drop::LinkWithoutPrograms`], [`Drop::RewriteFailed`].
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &mut Parsed, endpoint: &Endpoint) -> Outcome {
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
            begin(ctx, packet, endpoint)?;
        }
        _ => {}
    }
    Ok(Verdict::stack(Path::ToStack))
}

/// A packet of a pod's connection to where the host's rules have lately let another one's first packet pass as it was: this one goes past
/// them from its own first packet on. [`Decision::NONE`] for anything else.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::SnatPortsExhausted`], [`Drop::TranslationShareUsed`],
/// [`Drop::TranslationsFull`].
#[inline(never)]
pub fn to_known_destination(ctx: &TcContext, packet: &mut Parsed) -> Attempt {
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
        (Quad::of(&half.source), half.source_port)
    } else {
        if !packet.begins_connection() {
            return Ok(Decision::NONE);
        }
        let mut to = translation::begin(TRANSLATION_SNAT, uplink, &packet.flow);
        to.source = destination.source;
        (to.past_stack, to.asked) = (1, destination.asked);
        translation::establish(ctx, &packet.flow, &mut to)?;
        // Another CPU was first with the same flow, and has asked them.
        if to.past_stack == 0 || to.ifindex != uplink {
            return Ok(Decision::NONE);
        }
        (Quad::of(&to.source), to.source_port)
    };
    readdress(ctx, packet, source, port)?;
    Ok(Verdict::redirect(Path::SnatOut, leave(ctx, uplink, &destination.next_hop)).into())
}

#[inline(always)]
fn past_stack(
    ctx: &TcContext,
    packet: &mut Parsed,
    endpoint: &Endpoint,
    entry: &TranslationEntry,
) -> Outcome {
    if asks_policies(packet) {
        // Policies of IPsec have come: the stack asks them from now on.
        entry.set_past_stack(&packet.flow, false);
        return Ok(Verdict::stack(Path::ToStack));
    }
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
        Lookup::Found if leads_out_bare(packet, &way) => {
            maps::note_refused(way.ifindex);
            return Err(Drop::LinkWithoutPrograms);
        }
        // By another uplink its flow begins anew.
        _ => return Ok(Verdict::stack(Path::ToStack)),
    }
    translation::touch(entry, packet);
    if packet.is_whole() {
        readdress(ctx, packet, Quad::of(&to.source), to.source_port)?;
    } else {
        decrement_ttl(ctx, &packet.headers, 0)?;
        translate(ctx, packet, to)?;
    }
    Ok(Verdict::redirect(Path::SnatOut, way.leave(ctx)))
}

// A function of its own: what it computes with would take its place on the stack of both callers.
#[inline(never)]
fn readdress(ctx: &TcContext, packet: &mut Parsed, source: Quad, port: Be16) -> Result<(), Drop> {
    readdress_source(ctx, packet, source, port)
}

/// Notes a flow's first packet, and the way that the kernel's routes have for it.
///
/// # Errors
/// [`Drop::LinkWithoutPrograms`]: the pod's address would leave bare.
#[inline(never)]
fn begin(ctx: &TcContext, packet: &Parsed, endpoint: &Endpoint) -> Result<(), Drop> {
    let mut way = way_of_pod(packet, endpoint, 0);
    let link = match way.look_up_any(ctx) {
        Lookup::Found if leads_out_bare(packet, &way) => {
            maps::note_refused(way.ifindex);
            return Err(Drop::LinkWithoutPrograms);
        }
        Lookup::Found => way.ifindex,
        _ => 0,
    };
    let imprint = imprint(ctx, packet, packet.headers.ttl.wrapping_sub(1));
    let (flow, next_hop_mac) = (packet.flow, way.next_hop_mac);
    maps::note_beginning(&Beginning { flow, imprint, link, next_hop_mac, reserved: [0; 2] });
    ctx.set_beginning();
    Ok(())
}

/// Whether a pod's packet to the world would leave by a link without programs, and is not meant to keep the pod's address.
#[inline(always)]
fn leads_out_bare(packet: &Parsed, way: &Way) -> bool {
    maps::link(way.ifindex).is_none_or(|link| link.kind == LINK_WITHOUT_PROGRAMS)
        && way.next_hop.ipv4().is_none_or(|router| maps::endpoint(&router).is_none())
        && !maps::is_not_masqueraded(&packet.headers.destination_address())
}

/// The way that the kernel's routes have for a pod's packet.
#[inline(always)]
fn way_of_pod(packet: &Parsed, endpoint: &Endpoint, length: u32) -> Way {
    Way::new(endpoint.ifindex, packet.headers.source_address(), packet.headers.destination_address(), length)
}

/// Whether an IPsec policy may match a pod's packet to the world.
#[inline(always)]
fn asks_policies(packet: &Parsed) -> bool {
    maps::network(&packet.headers.destination_address()) & (NETWORK_THROUGH_STACK | NETWORK_REFUSED) != 0
}

/// Whether the host's rules have let the first packet of a pod's flow pass as it was, by the way that the programs would find for the
/// others: no other destination, no mark, no other link or router, and nothing else about the packet. Where they have not, they have to see
/// the whole flow.
#[inline(never)]
pub(super) fn is_untouched(ctx: &TcContext, packet: &Parsed) -> bool {
    if !ctx.is_unmarked_beginning()
        || !matches!(packet.headers.fragment_part(), Fragment::Whole)
        || asks_policies(packet)
    {
        return false;
    }
    let Some(noted) = maps::noted_beginning(&packet.flow, imprint(ctx, packet, packet.headers.ttl)) else {
        return false;
    };
    let (link, mac) = (ctx.ifindex(), packet.headers.destination_mac);
    if noted.next_hop_mac != Mac::default() {
        return noted.link == link && noted.next_hop_mac == mac;
    }
    // The link has no link addresses, or the kernel has asked for the neighbour's since.
    let Some(endpoint) = maps::endpoint(&packet.headers.source_address()) else {
        return false;
    };
    let mut way = way_of_pod(packet, endpoint, 0);
    way.look_up_any(ctx) == Lookup::Found && way.ifindex == link && way.next_hop_mac == mac
}
