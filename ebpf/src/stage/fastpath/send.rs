//! Sending packets of known flows.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        FLOW_IN_TUNNEL, FLOW_OF_SENDER, FLOW_REWRITES_DESTINATION, FLOW_REWRITES_SOURCE, KnownFlow,
        LEAVES_BY_UPLINK, LEAVES_IN_TUNNEL, LEAVES_INTO_POD,
    },
    addr::Quad,
    reason::Path,
};

use super::{
    super::{local, outer},
    lookup::of,
};
use crate::{
    maps,
    packet::{Parsed, Plain, Way, decrement_ttl, leave, readdress_destination, readdress_source},
    verdict::{Attempt, Decision, Verdict},
};

/// Returns whether a pod's flow leads to another pod of this node, and only TTL and link addresses
/// change.
#[inline(always)]
pub fn is_to_neighbour(known: &KnownFlow) -> bool {
    known.leaves == LEAVES_INTO_POD && known.flags & (FLOW_REWRITES_SOURCE | FLOW_REWRITES_DESTINATION) == 0
}

/// Sends a pod's packet to another pod of this node. Returns [`Decision::NONE`] if the entry has
/// become another flow's meanwhile.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(always)]
pub fn to_neighbour(ctx: &TcContext, plain: Plain, known: &KnownFlow) -> Attempt {
    let (to, macs) = (known.to, known.macs);
    if !maps::is_still(known, &plain.key()) {
        return Ok(Decision::NONE);
    }
    plain.pass_on(ctx, macs)?;
    Ok(Verdict::redirect(Path::Local, local::into(ctx, to)).into())
}

/// Sends a pod's packet out of the node. Returns [`Decision::NONE`] if it does not fit the known
/// flow.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &mut Parsed, known: &KnownFlow) -> Attempt {
    if packet.wire_length(ctx) > known.mtu {
        return Ok(Decision::NONE);
    }
    match known.leaves {
        LEAVES_IN_TUNNEL => into_tunnel(ctx, packet, known),
        LEAVES_BY_UPLINK => by_uplink(ctx, packet, known),
        _ => Ok(Decision::NONE),
    }
}

#[inline(always)]
fn into_tunnel(ctx: &TcContext, packet: &mut Parsed, known: &KnownFlow) -> Attempt {
    let tunnel = &known.tunnel;
    let way = Way::known(known.to, known.next_hop, tunnel.here, tunnel.there);
    let (source_port, inner) = (tunnel.source_port, tunnel.inner_mac);
    if !maps::is_still(known, &packet.flow.key()) {
        return Ok(Decision::NONE);
    }
    outer::send_known(ctx, packet, &way, source_port, inner)
}

#[inline(always)]
fn by_uplink(ctx: &TcContext, packet: &mut Parsed, known: &KnownFlow) -> Attempt {
    let (to, next_hop, path) = (known.to, known.next_hop, known.path);
    let (flags, source, port) = (known.flags, known.source.be32(), known.source_port);
    if !maps::is_still(known, &packet.flow.key()) {
        return Ok(Decision::NONE);
    }
    match flags & FLOW_REWRITES_SOURCE {
        0 => decrement_ttl(ctx, &packet.headers, 0)?,
        _ => readdress_source(ctx, packet, Quad::from_be32(source), port)?,
    }
    Ok(Verdict::counted(path, leave(ctx, to, &next_hop)).into())
}

/// Delivers a packet that arrived on an uplink, by direct routing or from the world. Returns
/// [`Decision::NONE`] as [`from_pod`] does.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_uplink(ctx: &TcContext, packet: &mut Parsed) -> Attempt {
    let key = packet.flow.key();
    let Some(known) = of(ctx, packet, &key) else {
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
    let (destination, port) = (known.destination.be32(), known.destination_port);
    if !maps::is_still_in_place(known, &key) {
        return Ok(Decision::NONE);
    }
    match flags & FLOW_REWRITES_DESTINATION {
        0 => local::pass_on(ctx, &mut packet.headers, macs)?,
        _ => {
            packet.headers.set_macs(macs);
            readdress_destination(ctx, packet, Quad::from_be32(destination), port)?;
        }
    }
    Ok(Verdict::counted(path, local::into(ctx, to)).into())
}
