//! What a pod's IPv6 stack sends to its own link: neighbour discovery (RFC 4861) and multicast
//! listener reports (RFC 2710, RFC 3810). Nothing of it leaves the link.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::Addr,
    flow::protocol,
    names::GATEWAY6,
    reason::{Drop, Path},
};

use super::{local, source};
use crate::{
    packet::{Fragment, Ipv6, ON_LINK_HOP_LIMIT, Parsed, Skb, advertise_gateway},
    verdict::{Attempt, Decision, Outcome, Verdict},
};

const LISTENER_QUERY: u8 = 130;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT: u8 = 143;

/// A neighbour solicitation without its options.
#[repr(C)]
struct Solicitation {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    reserved: [u8; 4],
    target: Addr,
}

/// Answers or refuses a packet that concerns only the pod's link. Returns [`Decision::NONE`] for
/// all other packets.
///
/// # Errors
/// [`Drop::NeighbourChatter`], [`Drop::RouterAdvertisement`], [`Drop::RedirectFromPod`], those of a
/// solicitation.
#[inline(never)]
pub fn on_link(ctx: &TcContext, packet: &Parsed<Ipv6>) -> Attempt {
    let has_message = packet.flow.protocol == protocol::ICMPV6
        && !packet.is_error
        && !matches!(packet.fragment_part(), Fragment::Later);
    if !has_message {
        return Ok(Decision::NONE);
    }
    let kind: u8 = ctx.load_at(packet.transport_offset())?;
    match kind {
        LISTENER_QUERY..=LISTENER_DONE | LISTENER_REPORT | ROUTER_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            Err(Drop::NeighbourChatter)
        }
        ROUTER_ADVERTISEMENT => Err(Drop::RouterAdvertisement),
        REDIRECT => Err(Drop::RedirectFromPod),
        NEIGHBOUR_SOLICITATION => Ok(solicited(ctx, packet)?.into()),
        _ => Ok(Decision::NONE),
    }
}

/// Answers a solicitation for the pod's gateway. The gateway is a permanent neighbour in the pod,
/// so this serves only tools that ask anyway.
#[inline(never)]
fn solicited(ctx: &TcContext, packet: &Parsed<Ipv6>) -> Outcome {
    let sender = packet.headers.source_address();
    // Duplicate address detection: silence tells the pod that the address is its own.
    if sender == Addr::UNSPECIFIED {
        return Err(Drop::NeighbourChatter);
    }
    let endpoint = source::of_pod(ctx, &sender, packet.headers.source_mac)?;
    let solicitation: Solicitation =
        ctx.load_at(packet.transport_offset()).map_err(|_| Drop::SolicitationNotForGateway)?;
    let is_for_gateway = packet.headers.ttl() == ON_LINK_HOP_LIMIT
        && solicitation.code == 0
        && solicitation.target.bytes == GATEWAY6;
    if !is_for_gateway {
        return Err(Drop::SolicitationNotForGateway);
    }
    advertise_gateway(ctx, packet, endpoint.host_mac)?;
    Ok(Verdict::redirect(Path::ArpAnswered, local::into_endpoint(ctx, endpoint)))
}
