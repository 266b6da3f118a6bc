//! What a pod sends: TC ingress of the host side of its veth pair.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{ENDPOINT_HAS_HOST_PORTS, ENDPOINT_STACK_ONLY, NODE_ADDRESS, NODE_LOCAL},
    flow::protocol,
    reason::{Drop, Path},
};

use crate::{
    maps,
    packet::{Headers, Place, Skb, ethertype},
    stage::{
        arp, checksum, direct, fastpath, flow, frontend, icmp_error, local, snat, source, stack_flow,
        tunnel_out,
    },
    verdict::{Outcome, Verdict, finish},
};

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    finish(&ctx, verdict(&ctx))
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Outcome {
    ctx.clear_ready_to_leave();
    checksum::of_pod(ctx)?;
    let known = fastpath::of_pod(ctx);
    if let Some((plain, known)) = known
        && fastpath::is_to_neighbour(known)
        && let Some(verdict) = fastpath::to_neighbour(ctx, plain, known)?.verdict()
    {
        return Ok(verdict);
    }
    let mut place = Place::new();
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
    if let Some((_, known)) = known
        && let Some(verdict) = fastpath::from_pod(ctx, packet, known)?.verdict()
    {
        return Ok(verdict);
    }
    if packet.flow.protocol == protocol::TCP
        && let Some(verdict) = snat::to_known_destination(ctx, packet)?.verdict()
    {
        return Ok(verdict);
    }
    // Before anything is looked up that a flow may be learnt from.
    packet.generation = maps::generation();
    let endpoint = source::of_pod(ctx, &packet.headers.source_address(), packet.headers.source_mac)?;
    source::keep_to_limit(ctx, endpoint)?;
    icmp_error::check_from_pod(packet)?;
    flow::complete(packet)?;

    if endpoint.flags & ENDPOINT_HAS_HOST_PORTS != 0
        && let Some(to) = frontend::reply_of_pod(packet)
    {
        return frontend::reply(ctx, packet, endpoint, to);
    }
    let destination = packet.headers.destination_address();
    if let Some(other) = maps::endpoint(&destination) {
        if packet.headers.ttl <= 1
            || other.flags & ENDPOINT_STACK_ONLY != 0
            || stack_flow::needs_stack(endpoint, packet)
        {
            return Ok(Verdict::stack(Path::ToStack));
        }
        fastpath::learn_local(ctx, packet, endpoint, other);
        return local::deliver(ctx, &mut packet.headers, other, Path::Local);
    }
    if let Some(node) = maps::node(&destination) {
        source::refuse_tunnel_from_pod(packet, node)?;
        let is_own = NODE_LOCAL | NODE_ADDRESS;
        if node.flags & is_own == is_own {
            return frontend::from_pod(ctx, packet, Path::ToStack);
        }
        if node.flags & NODE_LOCAL == 0 && !stack_flow::needs_stack(endpoint, packet) {
            return match maps::is_direct() {
                true => direct::from_pod(ctx, packet, endpoint, node),
                false => tunnel_out::from_pod(ctx, packet, endpoint, node),
            };
        }
        return Ok(Verdict::stack(Path::ToStack));
    }
    snat::from_pod(ctx, packet, endpoint)
}

#[inline(always)]
fn refuse_group(headers: &Headers) -> Result<(), Drop> {
    if headers.destination == [255; 4] || headers.destination_mac.is_broadcast() {
        return Err(Drop::Broadcast);
    }
    if headers.destination[0] & 0xf0 == 0xe0 || headers.destination_mac.is_group() {
        return Err(Drop::Multicast);
    }
    Ok(())
}
