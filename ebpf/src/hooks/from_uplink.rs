//! TC ingress of an uplink: packets from the network. Packets that do not concern Podwire pass
//! unchanged.

use aya_ebpf::{macros::classifier, programs::TcContext};
use podwire_common::{
    abi::{Endpoint, LINK_UPLINK, NODE_IPSEC_PODS, NODE_LOCAL, NODE_POD_NETWORK, Node},
    names::programs::Jump,
    reason::{Drop, Hook},
};

use crate::{
    maps,
    packet::{Fragment, Ip, Ipv4, Ipv6, Parsed, Place, Skb, ethertype},
    stage::{
        direct, ends, event, fastpath, fastpath::KnownIp, icmp_error, inbound, outside, source, stack_flow,
        translation, tunnel_in,
    },
    verdict::{Attempt, Decision, Outcome, Verdict, capture, finish, finish_or_jump, serve},
};

#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    capture(&ctx, Hook::FromUplink);
    if ctx.ethertype() == ethertype::IPV6 {
        return finish_or_jump(&ctx, Hook::FromUplink, Ok(Decision::NONE), Jump::FromUplink6);
    }
    let attempt = serve(&ctx, Hook::FromUplink, verdict(&ctx), Jump::SERVICES);
    finish_or_jump(&ctx, Hook::FromUplink, attempt, Jump::FromTunnel6)
}

/// The program for IPv6 inside the tunnel.
#[classifier]
pub fn from_tunnel6(ctx: TcContext) -> i32 {
    finish(&ctx, Hook::FromUplink, serve(&ctx, Hook::FromUplink, tunnel_in::inner6(&ctx), Jump::SERVICES6))
}

/// The program for IPv6.
#[classifier]
pub fn from_uplink6(ctx: TcContext) -> i32 {
    let attempt = serve(&ctx, Hook::FromUplink, verdict6(&ctx), Jump::SERVICES6);
    finish_or_jump(&ctx, Hook::FromUplink, attempt, Jump::FromTunnel6)
}

#[inline(always)]
fn verdict(ctx: &TcContext) -> Attempt {
    // If the underlay consists of veth pairs, another node's program may have set the
    // ready-to-leave mark.
    ctx.clear_ready_to_leave();
    let mut place = Place::<Ipv4>::new();
    // A frame with a VLAN tag belongs to another link. The stack drops frames for another host.
    if ctx.has_foreign_vlan_tag() || ctx.is_for_another_host() {
        return Ok(Verdict::PASS.into());
    }
    let Ok(loaded) = place.load(ctx) else {
        return Ok(Verdict::PASS.into());
    };
    match loaded.headers().ethertype.get() {
        ethertype::IPV4 => {}
        // The kernel would take off the second tag too, unseen by this program.
        ethertype::VLAN | ethertype::SERVICE_VLAN if ctx.has_vlan_tag() => return Err(Drop::VlanTagged),
        _ => return Ok(Verdict::PASS.into()),
    }
    source::refuse_loopback(loaded.headers())?;
    if !ctx.is_for_this_host() {
        source::of_group_frame(loaded.headers())?;
        return Ok(Verdict::PASS.into());
    }
    let packet = match loaded.parse(ctx) {
        Ok(packet) => packet,
        Err(faulty) => return source::of_bare_faulty(ctx, &faulty).map(|()| Verdict::PASS.into()),
    };
    if !maps::is_direct() && source::is_tunnel(packet) && is_for_tunnel(ctx, packet)? {
        return tunnel_in::on_uplink(ctx, packet);
    }
    follow_or_judge(ctx, packet).map(Decision::from)
}

#[inline(always)]
fn verdict6(ctx: &TcContext) -> Attempt {
    ctx.clear_ready_to_leave();
    let mut place = Place::<Ipv6>::new();
    if ctx.has_foreign_vlan_tag() || ctx.is_for_another_host() {
        return Ok(Verdict::PASS.into());
    }
    let loaded = match place.load(ctx) {
        Ok(loaded) if loaded.headers().is_ip() => loaded,
        _ => return Ok(Verdict::PASS.into()),
    };
    source::refuse_mapped(loaded.headers())?;
    if !ctx.is_for_this_host() {
        source::of_group_frame(loaded.headers())?;
        return Ok(Verdict::PASS.into());
    }
    let packet = match loaded.parse(ctx) {
        Ok(packet) => packet,
        Err(faulty) => return source::of_bare_faulty(ctx, &faulty).map(|()| Verdict::PASS.into()),
    };
    if !maps::is_direct() && source::is_tunnel(packet) && is_for_tunnel(ctx, packet)? {
        return tunnel_in::on_uplink_over_ipv6(ctx, packet);
    }
    follow_or_judge(ctx, packet).map(Decision::from)
}

/// Handles a packet that does not belong to the tunnel.
#[inline(always)]
fn follow_or_judge<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    if packet.is_error {
        icmp_error::forget(ctx, packet);
    }
    if let Some(verdict) = fastpath::from_uplink(ctx, packet)?.verdict() {
        return Ok(verdict);
    }
    judge(ctx, packet)
}

/// Judges a packet that belongs neither to the tunnel nor to a known flow.
#[inline(always)]
fn judge<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    event::begin(ctx, packet);
    // Read the generation before the first lookup from which a flow may be learnt.
    packet.generation = maps::generation();
    let translation = if packet.is_whole() { translation::of(packet) } else { None };
    if let Some(entry) = &translation
        && entry.get().past_stack != 0
        && entry.get().reply != 0
    {
        // A reply. The programs looked up the other end when the flow began, so they do not look it
        // up again.
        return inbound::follow(ctx, packet, entry);
    }
    if let Some(entry) = &translation
        && outside::is_under_way(ctx, packet, entry.get())
    {
        return outside::go_on(ctx, packet, entry);
    }
    let sender = ends::sending_node(&packet.headers, &packet.headers.source_address());
    if let Some(node) = sender {
        source::of_bare_packet(ctx, &packet.headers, node)?;
    }
    if let Some(node) = sender
        && node.flags & NODE_POD_NETWORK != 0
    {
        icmp_error::check_from_pod(packet)?;
    }
    let destination = packet.headers.destination_address();
    if let Some(endpoint) = ends::receiving_pod(&packet.headers, &destination) {
        return to_pod(ctx, packet, endpoint, sender);
    }
    match sender {
        // The kernel refuses its own addresses as a source; a hostPort must not let them in.
        Some(node) if node.flags & NODE_LOCAL != 0 => Ok(Verdict::PASS),
        _ => inbound::from_network(ctx, packet, translation),
    }
}

/// Delivers a packet for a pod of this node. By direct routing it may bypass the stack.
#[inline(always)]
fn to_pod<I: KnownIp>(
    ctx: &TcContext,
    packet: &mut Parsed<I>,
    endpoint: &Endpoint,
    sender: Option<&Node>,
) -> Outcome {
    match sender {
        // No packet from outside may have one of this node's own addresses as its source.
        Some(node) if node.flags & NODE_LOCAL != 0 => Err(Drop::PodSourceNotFromNode),
        Some(node) if maps::is_direct() && node.flags & NODE_IPSEC_PODS != 0 => Ok(Verdict::PASS),
        Some(node) if maps::is_direct() => direct::to_pod(ctx, packet, endpoint, Some(node)),
        // A router's ICMP error about a flow that bypassed the stack bypasses it too: conntrack has
        // not seen that flow and would call the error invalid.
        None if maps::is_direct() && stack_flow::is_error_about_direct(packet) => {
            direct::to_pod(ctx, packet, endpoint, None)
        }
        // From the world to a pod's own address: the host's routing decides, and the pod answers
        // with its own address.
        _ => {
            inbound::record(packet);
            Ok(Verdict::PASS)
        }
    }
}

/// Returns whether this program handles a VXLAN packet. It leaves outer fragments to the host,
/// which reassembles them for the VXLAN device.
///
/// # Errors
/// [`Drop::TunnelNotByUplink`] when the packet came by a link that is no uplink. The VXLAN device
/// would take it from any link.
#[inline(always)]
fn is_for_tunnel<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> Result<bool, Drop> {
    let destination = packet.headers.destination_address();
    if source::is_tunnel_address::<I>(ctx, &destination) {
        let is_whole = matches!(packet.fragment_part(), Fragment::Whole);
        return Ok(is_whole && !cfg!(feature = "through-device"));
    }
    match maps::link(ctx.ifindex()) {
        Some(link) if link.kind == LINK_UPLINK => Ok(false),
        Some(_) if maps::is_own_address(&destination) => Err(Drop::TunnelNotByUplink),
        _ => Ok(false),
    }
}
