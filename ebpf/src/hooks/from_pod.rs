//! TC ingress of the host side of a pod's veth pair: packets that the pod sends.
//!
//! The first program handles packets of known flows and leaves all others to a second program. So a
//! packet of a known flow runs through fewer instructions, and the second program has all of the
//! verifier's limits for itself.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{
        CLIENTS_INSIDE, ENDPOINT_HAS_HOST_PORTS, ENDPOINT_STACK_ONLY, NODE_ADDRESS, NODE_IPSEC_PODS,
        NODE_LOCAL, TRANSLATION_SERVICE,
    },
    flow::protocol,
    names::programs::Jump,
    reason::{Drop, Hook, Path},
};

use crate::{
    maps,
    packet::{Headers, Ip, Ipv4, Ipv6, Parsed, Place, Skb, ethertype},
    stage::{
        arp, checksum, direct, ends, event, fastpath, fastpath::KnownIp, flow, frontend, icmp_error, local,
        neighbour, snat, source, stack_flow, tunnel_out,
    },
    verdict::{Attempt, Decision, Outcome, Verdict, capture, finish, finish_or_jump, serve},
};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::FromPod);
    if ctx.ethertype() == ethertype::IPV6 {
        return finish_or_jump(&ctx, Hook::FromPod, Ok(Decision::NONE), Jump::FromPod6);
    }
    finish_or_jump(&ctx, Hook::FromPod, known::<Ipv4>(&ctx), Jump::FromPodNew)
}

/// The program for IPv6.
#[classifier]
pub fn from_pod6(ctx: TcContext) -> i32 {
    finish_or_jump(&ctx, Hook::FromPod, known::<Ipv6>(&ctx), Jump::FromPod6New)
}

/// The second program for IPv6.
#[classifier]
pub fn from_pod6_new(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::FromPod, serve(&ctx, Hook::FromPod, verdict6(&ctx), Jump::SERVICES6))
}

/// The second program: packets without a known flow.
#[classifier]
pub fn from_pod_new(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::FromPod, serve(&ctx, Hook::FromPod, verdict(&ctx), Jump::SERVICES))
}

#[inline(always)]
fn known<I: KnownIp>(ctx: &TcContext) -> Attempt {
    ctx.clear_ready_to_leave();
    checksum::of_pod::<I>(ctx)?;
    let Some((plain, key, known)) = fastpath::of_pod::<I>(ctx) else {
        return Ok(Decision::NONE);
    };
    if fastpath::is_to_neighbour(known) {
        return fastpath::to_neighbour(ctx, plain, &key, known);
    }
    let mut place = Place::<I>::new();
    match place.load(ctx)?.parse(ctx) {
        Ok(packet) => fastpath::from_pod(ctx, packet, known),
        // The second program names the fault.
        Err(_) => Ok(Decision::NONE),
    }
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Outcome {
    let mut place = Place::<Ipv4>::new();
    let loaded = place.load(ctx)?;
    match loaded.headers().ethertype.get() {
        _ if ctx.has_vlan_tag() => return Err(Drop::VlanTagged),
        ethertype::VLAN | ethertype::SERVICE_VLAN => return Err(Drop::VlanTagged),
        ethertype::ARP => return arp::answer(ctx, loaded.headers().source_mac),
        ethertype::IPV6 => return Err(Drop::FamilyNotEnabled),
        ethertype::IPV4 => {}
        _ => return Err(Drop::EthertypeUnknown),
    }
    refuse_group(loaded.headers())?;
    source::refuse_loopback(loaded.headers())?;
    let packet = match loaded.parse(ctx) {
        Ok(packet) => packet,
        Err(faulty) => return Err(source::of_faulty(ctx, &faulty)),
    };
    judge(ctx, packet)
}

#[inline(always)]
fn verdict6(ctx: &TcContext) -> Outcome {
    let mut place = Place::<Ipv6>::new();
    let loaded = place.load(ctx)?;
    if ctx.has_vlan_tag() {
        return Err(Drop::VlanTagged);
    }
    if !loaded.headers().is_ip() {
        return Err(Drop::EthertypeUnknown);
    }
    let packet = match loaded.parse(ctx) {
        Ok(packet) => packet,
        Err(faulty) => return Err(source::of_faulty(ctx, &faulty)),
    };
    if let Some(verdict) = neighbour::on_link(ctx, packet)?.verdict() {
        return Ok(verdict);
    }
    source::refuse_unroutable(&packet.headers)?;
    refuse_multicast(&packet.headers)?;
    judge(ctx, packet)
}

/// Sends a packet to wherever its addresses lead.
#[inline(always)]
fn judge<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    event::begin(ctx, packet);
    // These packets skip all checks below. A check that may refuse them needs its condition in
    // `fastpath::destination_of` too.
    if packet.flow.protocol == protocol::TCP
        && let Some(verdict) = snat::to_known_destination(ctx, packet)?.verdict()
    {
        return Ok(verdict);
    }
    // Read the generation before the first lookup from which a flow may be learnt.
    packet.generation = maps::generation();
    let endpoint = source::of_headers(ctx, &packet.headers)?;
    source::keep_to_limit(ctx, endpoint)?;
    icmp_error::check_from_pod(packet)?;
    flow::complete(packet)?;
    // Any pod may be the backend of a service.
    if (endpoint.flags & ENDPOINT_HAS_HOST_PORTS != 0 || maps::has_services())
        && let Some(to) = frontend::reply_of_pod(packet)
    {
        return match to.kind {
            TRANSLATION_SERVICE => Ok(Verdict::SERVE),
            _ => frontend::reply(ctx, packet, endpoint, to),
        };
    }
    let destination = packet.headers.destination_address();
    if let Some(other) = ends::receiving_pod(&packet.headers, &destination) {
        if packet.headers.ttl() <= 1
            || other.flags & ENDPOINT_STACK_ONLY != 0
            || stack_flow::needs_stack(endpoint, packet)
        {
            return Ok(Verdict::stack(Path::ToStack));
        }
        fastpath::learn_local(ctx, packet, endpoint, other);
        return local::deliver(ctx, &mut packet.headers, other, Path::Local);
    }
    if let Some(node) = ends::receiving_node(&packet.headers, &destination) {
        source::refuse_tunnel_from_pod(packet, node)?;
        let is_own = NODE_LOCAL | NODE_ADDRESS;
        if node.flags & is_own == is_own {
            return frontend::from_pod(ctx, packet, CLIENTS_INSIDE);
        }
        if node.flags & (NODE_LOCAL | NODE_IPSEC_PODS) == 0 && !stack_flow::needs_stack(endpoint, packet) {
            return match maps::is_direct() {
                true => direct::from_pod(ctx, packet, endpoint, node),
                false => tunnel_out::from_pod(ctx, packet, endpoint, node),
            };
        }
        return Ok(Verdict::stack(Path::ToStack));
    }
    if maps::has_services() {
        return Ok(Verdict::SERVE);
    }
    snat::from_pod(ctx, packet, endpoint)
}

#[inline(always)]
fn refuse_group(headers: &Headers) -> Result<(), Drop> {
    if headers.ip.destination == [255; 4] || headers.destination_mac.is_broadcast() {
        return Err(Drop::Broadcast);
    }
    refuse_multicast(headers)
}

#[inline(always)]
fn refuse_multicast<I: Ip>(headers: &Headers<I>) -> Result<(), Drop> {
    if headers.ip.is_multicast() || headers.destination_mac.is_group() {
        return Err(Drop::Multicast);
    }
    Ok(())
}
