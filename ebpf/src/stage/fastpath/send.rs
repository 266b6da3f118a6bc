//! Sending packets of known flows.

use core::borrow::Borrow as _;

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        FAMILY_IPV4, FAMILY_IPV6, FLOW_IN_TUNNEL, FLOW_OF_SENDER, FLOW_REWRITES_DESTINATION,
        FLOW_REWRITES_SOURCE, KnownFlow, LEAVES_BY_UPLINK, LEAVES_IN_TUNNEL, LEAVES_IN_TUNNEL6,
        LEAVES_INTO_POD,
    },
    flow::FlowAddr,
    reason::{Drop, Path},
};

use super::{
    super::{local, outer},
    Entry, Key, KnownIp,
    lookup::of,
};
use crate::{
    maps,
    packet::{Parsed, Plain, Skb as _, Way, decrement_ttl, leave, store_destination},
    verdict::{Attempt, Decision, Verdict},
};

/// Returns whether a pod's flow leads to another pod of this node, and only TTL and link addresses
/// change.
#[inline(always)]
pub fn is_to_neighbour<A: FlowAddr>(known: &KnownFlow<A>) -> bool {
    known.leaves == LEAVES_INTO_POD && known.flags & (FLOW_REWRITES_SOURCE | FLOW_REWRITES_DESTINATION) == 0
}

/// Sends a pod's packet to another pod of this node. `key`: its flow's. Returns [`Decision::NONE`]
/// if the entry has become another flow's meanwhile.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn to_neighbour<I: KnownIp>(ctx: &TcContext, plain: Plain<I>, key: &Key<I>, known: &Entry<I>) -> Attempt {
    let (to, front) = (known.to, plain.forwarded(known.macs));
    if !maps::is_still(known, key) {
        return Ok(Decision::NONE);
    }
    ctx.store_at(0, &front)?;
    Ok(Verdict::redirect(Path::Local, local::into(ctx, to)).into())
}

/// Sends a pod's packet out of the node. Returns [`Decision::NONE`] if it does not fit the known
/// flow.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_pod<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Attempt {
    if packet.wire_length(ctx) > known.mtu {
        return Ok(Decision::NONE);
    }
    // Only the programs for IPv4 have stack for it.
    let is_served = I::FAMILY == FAMILY_IPV4 && is_served(known.flags);
    if is_served && !readdress(ctx, packet, known)? {
        return Ok(Decision::NONE);
    }
    match known.leaves {
        LEAVES_INTO_POD if is_served => into_pod(ctx, packet, known),
        LEAVES_IN_TUNNEL => into_tunnel(ctx, packet, known),
        LEAVES_IN_TUNNEL6 if I::FAMILY == FAMILY_IPV6 => into_tunnel(ctx, packet, known),
        LEAVES_BY_UPLINK => by_uplink(ctx, packet, known),
        _ => Ok(Decision::NONE),
    }
}

/// Returns whether a flow is one to a service, or its answers. Only these have both ends rewritten.
#[inline(always)]
fn is_served(flags: u8) -> bool {
    const BOTH: u8 = FLOW_REWRITES_SOURCE | FLOW_REWRITES_DESTINATION;
    flags & BOTH == BOTH
}

/// Gives a packet the ends that its service's translation gives it. In the frame's IP header it writes
/// the destination of a packet that leaves the node. Returns `false`, with the packet unchanged, if
/// the entry has become another flow's.
#[inline(never)]
fn readdress<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Result<bool, Drop> {
    let ports = [known.source_port, known.destination_port];
    let (source, destination, leaves) = (known.source, known.destination, known.leaves);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(false);
    }
    if packet.headers.ip.is_to(&destination.address()) {
        I::set_source(ctx, packet, source, ports)?;
    } else {
        I::set_destination(ctx, packet, destination, ports)?;
    }
    if leaves != LEAVES_INTO_POD {
        store_destination(ctx, &packet.headers)?;
    }
    Ok(true)
}

/// Delivers a packet whose ends have been rewritten to a pod of this node.
#[inline(always)]
fn into_pod<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Attempt {
    let (to, macs) = (known.to, known.macs);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(Decision::NONE);
    }
    local::send(ctx, &mut packet.headers, macs, to, Path::Local).map(Decision::from)
}

#[inline(always)]
fn into_tunnel<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Attempt {
    let (tunnel, is_ipv6) = (&known.tunnel, known.leaves == LEAVES_IN_TUNNEL6);
    let way = Way::known(known.to, known.next_hop, tunnel.here, tunnel.there);
    let (source_port, inner) = (tunnel.source_port, tunnel.inner_mac);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(Decision::NONE);
    }
    outer::send_known(ctx, packet, &way, is_ipv6, source_port, inner)
}

#[inline(always)]
fn by_uplink<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Attempt {
    let (to, next_hop, path) = (known.to, known.next_hop, known.path);
    let (flags, source, port) = (known.flags, known.source, known.source_port);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(Decision::NONE);
    }
    match flags & FLOW_REWRITES_SOURCE {
        0 => decrement_ttl(ctx, &packet.headers, 0)?,
        _ => I::readdress_source(ctx, packet, source, port)?,
    }
    Ok(Verdict::counted(path, leave(ctx, to, &next_hop)).into())
}

/// Delivers a packet that arrived on an uplink, by direct routing or from the world. Returns
/// [`Decision::NONE`] as [`from_pod`] does.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_uplink<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Attempt {
    let key = I::FlowAddr::key(&packet.flow);
    let Some(known) = of(ctx, packet, key.borrow()) else {
        return Ok(Decision::NONE);
    };
    let flags = known.flags;
    if flags & FLOW_IN_TUNNEL != 0
        || known.leaves != LEAVES_INTO_POD
        || (known.mtu != u32::MAX && packet.wire_length(ctx) > known.mtu)
        || (flags & FLOW_OF_SENDER != 0 && !known.sender_mac.is(packet.headers.source_mac))
    {
        return Ok(Decision::NONE);
    }
    let (to, macs, path) = (known.to, known.macs, known.path);
    let (destination, port) = (known.destination, known.destination_port);
    if !maps::is_still_in_place(known, key.borrow()) {
        return Ok(Decision::NONE);
    }
    // It may be a part of the packet, which changes now.
    drop(key);
    match flags & FLOW_REWRITES_DESTINATION {
        0 => local::pass_on(ctx, &mut packet.headers, macs)?,
        _ => {
            packet.headers.set_macs(macs);
            I::readdress_destination(ctx, packet, destination, port)?;
        }
    }
    Ok(Verdict::counted(path, local::into(ctx, to)).into())
}
