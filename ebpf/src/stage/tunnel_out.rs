//! Packets to another node inside VXLAN.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Endpoint, FAMILY_IPV4, Macs, NODE_IPSEC_TUNNEL, NODE_TUNNEL_IPV6, NODE_VTEP, Node, Translation},
    addr::Mac,
    ecn,
    names::INNER_SOURCE_MAC,
    reason::{Drop, Path},
};

use super::{
    fastpath,
    fastpath::KnownIp,
    outer::{inner_destination, is_over_ipv6, outer_of, overhead},
    too_big,
};
use crate::{
    maps,
    packet::{
        Fragment, Ip, Ipv4, Ipv6, Lookup, Parsed, Skb, TunnelEnds, Way, encapsulate, fixed_part, forward,
        redirect, set_fixed_part, set_macs, set_tunnel_key,
    },
    verdict::{Attempt, Decision, Outcome, Verdict},
};

/// Sends a pod's packet past the host stack.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::TunnelTooSmall`].
#[inline(never)]
pub fn from_pod<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: &Endpoint,
    node: &Node,
) -> Outcome {
    if packet.headers.ttl() <= 1 {
        return Ok(Verdict::stack(Path::ToStack));
    }
    let mut way = way_to(ctx, packet, node);
    let lookup = ask::<I>(ctx, node, &mut way);
    if lookup == Lookup::TooBig
        && let Some(mtu) = mtu_to_answer(ctx, packet, &way, node)?
    {
        return too_big::answer(ctx, packet, endpoint, mtu);
    }
    if lookup == Lookup::Found && !goes_through_device::<I>(node) {
        fastpath::learn_tunnel_out(ctx, packet, endpoint, &way, node);
    }
    send(ctx, packet, node, (&way, lookup), &packet.headers.ip.decremented(), Path::TunnelOut)
}

/// Translates a packet and sends it to another node: a hostPort's reply, a packet to a service, or the
/// answer to one. The caller has checked that the TTL is above 1. `endpoint`: the pod that has sent
/// it; `None`: a client outside or another node has. `learn` gets the route if it may be learnt.
///
/// # Errors
/// [`Drop::NoRouteBack`], [`Drop::RewriteFailed`], [`Drop::TunnelTooSmall`].
#[inline(never)]
pub fn reply<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: Option<&Endpoint>,
    to: &Translation,
    path: Path,
    learn: impl FnOnce(&Way, &Node),
) -> Outcome {
    let node = maps::node(&to.destination).ok_or(Drop::NoRouteBack)?;
    let mut way = way_to(ctx, packet, node);
    let lookup = ask::<I>(ctx, node, &mut way);
    // Answer before the translation: the sender knows only its own packet.
    if lookup == Lookup::TooBig
        && let Some(mtu) = mtu_to_answer(ctx, packet, &way, node)?
    {
        return too_big::answer_sender(ctx, packet, endpoint, mtu);
    }
    if lookup == Lookup::Found && !goes_through_device::<I>(node) {
        learn(&way, node);
    }
    forward(ctx, packet, to)?;
    let translated = fixed_part::<I>(ctx)?;
    if endpoint.is_none() && ctx.segment_payload() != 0 {
        // A link may have put the segments together in ways for which the kernel takes no outer
        // headers from a program.
        return through_device(ctx, packet, node, &translated);
    }
    send(ctx, packet, node, (&way, lookup), &translated, path)
}

/// Takes a packet that the host stack sends out unencapsulated, and puts it into the tunnel. Its
/// source is a pod's address or this node's overlay address.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::TunnelTooSmall`].
#[inline(never)]
pub fn from_stack<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, node: &Node) -> Outcome {
    let mut way = way_to(ctx, packet, node);
    let lookup = ask::<I>(ctx, node, &mut way);
    if lookup == Lookup::TooBig
        && is_over_ipv6(node)
        && let Some(mtu) = mtu_to_answer(ctx, packet, &way, node)?
    {
        return too_big::answer_stack(ctx, packet, mtu);
    }
    send(ctx, packet, node, (&way, lookup), &packet.headers.ip.fixed_part(), Path::StackEncapsulated)
}

/// Answers a packet that the host stack sends by the VXLAN device, if it does not fit a tunnel of
/// IPv6: nobody fragments the outer packet, and the device cannot tell the sender, whose route
/// [`address_to_node`] replaces. Returns [`Decision::NONE`] if the device can send the packet.
///
/// # Errors
/// [`Drop::RewriteFailed`], [`Drop::TunnelTooSmall`].
#[inline(never)]
pub fn answer_stack<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, node: &Node) -> Attempt {
    let mut way = way_to(ctx, packet, node);
    // Every path takes so much, so most packets of the node's own processes are not asked for.
    if !is_over_ipv6(node) || way.length <= Ipv6::LEAST_MTU || ask::<I>(ctx, node, &mut way) != Lookup::TooBig
    {
        return Ok(Decision::NONE);
    }
    match mtu_to_answer(ctx, packet, &way, node)? {
        Some(mtu) => too_big::answer_stack(ctx, packet, mtu).map(Decision::from),
        None => Ok(Decision::NONE),
    }
}

/// Tells the VXLAN device which node a packet is for.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn address_to_node<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, node: &Node) -> Result<(), Drop> {
    set_macs(ctx, inner_macs(node))?;
    let class = ecn::encapsulate(packet.headers.ip.traffic_class());
    let ends = TunnelEnds {
        source: &node.source,
        destination: &node.tunnel_endpoint,
        are_ipv6: node.flags & NODE_TUNNEL_IPV6 != 0,
        need_checksum: needs_checksum(node),
    };
    set_tunnel_key(ctx, &ends, maps::vni(), class, packet.flow.tunnel_source_port().get())
}

/// Prepares the question for the route to a node on the underlay.
#[inline(always)]
fn way_to<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, node: &Node) -> Way {
    let length = packet.wire_length(ctx) + overhead(node);
    Way::new(node.uplink, node.source, node.tunnel_endpoint, length)
}

/// Asks for the route. If the packet is too large, [`Way::length`] is the most that the path takes,
/// outer headers included.
// In place: a returned way would take its stack twice.
#[inline(always)]
fn ask<I: Ip>(ctx: &TcContext, node: &Node, way: &mut Way) -> Lookup {
    let largest = node.mtu + overhead(node);
    if way.length > largest {
        way.length = largest;
        return Lookup::TooBig;
    }
    // The VXLAN device fragments what it sends over IPv4.
    if goes_through_device::<I>(node) && !is_over_ipv6(node) {
        return Lookup::Found;
    }
    if is_over_ipv6(node) { way.look_up::<Ipv6>(ctx) } else { way.look_up::<Ipv4>(ctx) }
}

/// Returns the MTU to report about a packet that is larger than the path takes. `None`: the VXLAN
/// device sends the packet in outer fragments. The packet is a fragment itself, so an error would
/// lose its datagram; or it is no larger than what every path must take (RFC 8200 section 5); or no
/// error can report it.
///
/// # Errors
/// [`Drop::TunnelTooSmall`]: nobody fragments the outer packets of a tunnel of IPv6. There a pod
/// gets the error also about a packet that may be fragmented: a host fragments its next packets
/// itself, and otherwise would lose all of them.
#[inline(always)]
fn mtu_to_answer<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    way: &Way,
    node: &Node,
) -> Result<Option<u32>, Drop> {
    let mtu = way.length.saturating_sub(overhead(node)).max(I::LEAST_MTU);
    let fragment = packet.fragment_part();
    let may_be_told = match is_over_ipv6(node) {
        true => !matches!(fragment, Fragment::Later) && too_big::can_quote(packet, mtu),
        false => matches!(fragment, Fragment::Whole) && too_big::can_answer(packet, mtu),
    };
    match may_be_told && packet.wire_length(ctx) > mtu {
        true => Ok(Some(mtu)),
        false if is_over_ipv6(node) => Err(Drop::TunnelTooSmall),
        false => Ok(None),
    }
}

#[inline(always)]
fn send<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    node: &Node,
    (way, lookup): (&Way, Lookup),
    header: &I::FixedPart,
    path: Path,
) -> Outcome {
    if goes_through_device::<I>(node) || lookup == Lookup::TooBig {
        // The VXLAN device sends large packets in outer fragments, over IPv4. A pod's large packet
        // comes here only if `mtu_to_answer` has no answer. One of the stack always comes here.
        return through_device(ctx, packet, node, header);
    }
    let (port, mac) = (packet.flow.tunnel_source_port(), inner_destination(node));
    // Known for IPv4 at compile time: its programs do not have the second kind of header.
    let is_ipv6 = I::FAMILY != FAMILY_IPV4 && is_over_ipv6(node);
    let outer = outer_of(packet, is_ipv6, port, mac);
    match encapsulate::<I>(ctx, way, &outer, header) {
        Err(_) => through_device(ctx, packet, node, header),
        Ok(stored) => {
            stored?;
            Ok(Verdict::redirect(path, way.leave(ctx)))
        }
    }
}

/// Returns whether the VXLAN device makes the outer headers: those of IPv6 around IPv4, those with
/// a UDP checksum, and those of packets for which the kernel has to ask its IPsec policies.
#[inline(always)]
fn goes_through_device<I: Ip>(node: &Node) -> bool {
    let flags = if I::FAMILY == FAMILY_IPV4 { NODE_TUNNEL_IPV6 } else { 0 };
    cfg!(feature = "through-device") || node.flags & (NODE_IPSEC_TUNNEL | flags) != 0 || needs_checksum(node)
}

/// Returns whether a node takes tunnel packets only with the outer UDP checksum: flannel's device
/// for IPv6.
#[inline(always)]
fn needs_checksum(node: &Node) -> bool {
    const BOTH: u32 = NODE_VTEP | NODE_TUNNEL_IPV6;
    node.flags & BOTH == BOTH
}

/// Returns the link addresses of inner frames to a node.
#[inline(always)]
fn inner_macs(node: &Node) -> Macs {
    // The source is not the device's own address but a constant: on cloned machines the receiver
    // may have the same address, and drops frames from it silently.
    Macs { destination: inner_destination(node), source: Mac { bytes: INNER_SOURCE_MAC } }
}

// Not inlined: its key would take stack in every caller.
#[inline(never)]
fn through_device<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, node: &Node, header: &I::FixedPart) -> Outcome {
    set_fixed_part::<I>(ctx, header)?;
    address_to_node(ctx, packet, node)?;
    Ok(Verdict::redirect(Path::TunnelOutDevice, redirect(maps::vxlan_ifindex())))
}
