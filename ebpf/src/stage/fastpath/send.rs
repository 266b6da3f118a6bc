//! Packets that follow what is known.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{KNOWN_DIRECT_IN, KNOWN_DIRECT_OUT, KNOWN_TUNNEL_OUT, KNOWN_WORLD_IN, KNOWN_WORLD_OUT, KnownFlow},
    reason::Path,
};

use super::{
    super::{local, outer},
    lookup::{is_still, of},
};
use crate::{
    maps,
    packet::{Ipv4, Plain, Way, decrement_ttl, readdress_destination, readdress_source},
    verdict::{Outcome, Verdict},
};

/// A pod's packet to another one here ([`KNOWN_LOCAL`](podwire_common::abi::KNOWN_LOCAL)); [`Verdict::UNDECIDED`] when the entry has become
/// another flow's meanwhile.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(always)]
pub fn to_neighbour(ctx: &TcContext, plain: Plain, known: &KnownFlow) -> Outcome {
    let (to, macs) = (known.to, known.macs);
    if !maps::is_still(known, &plain.key()) {
        return Ok(Verdict::UNDECIDED);
    }
    plain.pass_on(ctx, macs)?;
    Ok(Verdict::redirect(Path::Local, local::into(ctx, to)))
}

/// A pod's packet that leaves the node; [`Verdict::UNDECIDED`] when it does not fit what is known.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_pod(ctx: &TcContext, packet: &mut Ipv4, known: &KnownFlow) -> Outcome {
    let kind = known.kind;
    if packet.wire_length(ctx) > known.mtu {
        return Ok(Verdict::UNDECIDED);
    }
    let way = Way::known(known.to, known.next_hop, known.source, known.destination);
    let (source_port, inner) = (known.source_port, known.macs.destination);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    match kind {
        KNOWN_TUNNEL_OUT => outer::send_known(ctx, packet, &way, source_port, inner),
        KNOWN_WORLD_OUT => {
            readdress_source(ctx, packet, &way.source, source_port)?;
            Ok(Verdict::redirect(Path::SnatOut, way.leave(ctx)))
        }
        KNOWN_DIRECT_OUT => {
            decrement_ttl(ctx, &packet.headers, 0)?;
            Ok(Verdict::redirect(Path::DirectOut, way.leave(ctx)))
        }
        _ => Ok(Verdict::UNDECIDED),
    }
}

/// A packet as it arrived on an uplink, of direct routing or from the world; otherwise as [`from_pod`].
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(never)]
pub fn from_uplink(ctx: &TcContext, packet: &mut Ipv4) -> Outcome {
    let Some(known) = of(ctx, packet) else {
        return Ok(Verdict::UNDECIDED);
    };
    if known.kind == KNOWN_DIRECT_IN {
        if known.sender_mac != packet.headers.source_mac {
            return Ok(Verdict::UNDECIDED);
        }
        return into_pod(ctx, packet, known, Path::DirectIn);
    }
    if known.kind != KNOWN_WORLD_IN || packet.wire_length(ctx) > known.mtu {
        return Ok(Verdict::UNDECIDED);
    }
    let (to, macs) = (known.to, known.macs);
    let (destination, port) = (known.destination, known.destination_port);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    packet.headers.set_macs(macs);
    readdress_destination(ctx, packet, &destination, port)?;
    Ok(Verdict::redirect(Path::SnatIn, local::into(ctx, to)))
}

#[inline(always)]
fn into_pod(ctx: &TcContext, packet: &mut Ipv4, known: &KnownFlow, path: Path) -> Outcome {
    let (to, macs) = (known.to, known.macs);
    if !is_still(known, packet) {
        return Ok(Verdict::UNDECIDED);
    }
    local::send(ctx, &mut packet.headers, macs, to, path)
}
