//! Sending packets of known flows.

use core::borrow::Borrow as _;

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        FAMILY_IPV4, FAMILY_IPV6, FLOW_IN_TUNNEL, FLOW_OF_SENDER, FLOW_REWRITES_DESTINATION,
        FLOW_REWRITES_SOURCE, KnownFlow, LEAVES_BY_UPLINK, LEAVES_IN_TUNNEL, LEAVES_IN_TUNNEL6,
        LEAVES_INTO_POD, Macs,
    },
    addr::Be16,
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
    packet::{Parsed, Plain, Skb as _, Way, decrement_ttl, leave},
    verdict::{Attempt, Decision, Outcome, Verdict},
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
    let is_served = is_served::<I>(known.flags);
    if is_served && known.leaves != LEAVES_INTO_POD && !readdress(ctx, packet, known)? {
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

/// Returns whether a flow is one to a service, or its answers. Only these have both ends rewritten,
/// and only the programs for IPv4 have stack for it.
#[inline(always)]
fn is_served<I: KnownIp>(flags: u8) -> bool {
    const BOTH: u8 = FLOW_REWRITES_SOURCE | FLOW_REWRITES_DESTINATION;
    I::FAMILY == FAMILY_IPV4 && flags & BOTH == BOTH
}

/// Gives a packet that leaves the node the ends that its service's translation gives it. Returns
/// `false`, with the packet unchanged, if the entry has become another flow's.
///
/// The frame is whole again: if the kernel refuses to encapsulate it, the second program judges it as
/// the pod's packet to the backend itself.
#[inline(never)]
fn readdress<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Result<bool, Drop> {
    let (destination, ports) = (known.destination, [known.source_port, known.destination_port]);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(false);
    }
    I::set_destination(ctx, packet, destination, ports)?;
    I::store_front(ctx, packet, ports)?;
    Ok(true)
}

/// Delivers a packet of a service to a pod of this node.
#[inline(never)]
fn into_pod<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, known: &Entry<I>) -> Attempt {
    let way = IntoPod::of::<I>(known);
    if !maps::is_still(known, I::FlowAddr::key(&packet.flow).borrow()) {
        return Ok(Decision::NONE);
    }
    way.serve(ctx, packet, Path::Local as u16).map(Decision::from)
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
    let (way, path) = (IntoPod::of::<I>(known), known.path);
    if !maps::is_still_in_place(known, key.borrow()) {
        return Ok(Decision::NONE);
    }
    // It may be a part of the packet, which changes now.
    drop(key);
    if way.is_served {
        return way.serve(ctx, packet, path).map(Decision::from);
    }
    match flags & FLOW_REWRITES_DESTINATION {
        0 => local::pass_on(ctx, &mut packet.headers, way.macs)?,
        _ => {
            packet.headers.set_macs(way.macs);
            I::readdress_destination(ctx, packet, way.destination, way.ports[1])?;
        }
    }
    Ok(Verdict::counted(path, local::into(ctx, way.link)).into())
}

/// How a packet of a known flow enters a pod of this node.
pub struct IntoPod<A> {
    link: u32,
    macs: Macs,
    source: A,
    destination: A,
    ports: [Be16; 2],
    /// See [`is_served`]. The ends of other packets out of the tunnel stay as they are.
    is_served: bool,
}

impl<A: FlowAddr> IntoPod<A> {
    /// Reads an entry. The caller compares its key after that.
    #[inline(always)]
    pub(super) fn of<I: KnownIp<FlowAddr = A>>(known: &Entry<I>) -> Self {
        Self {
            link: known.to,
            macs: known.macs,
            source: known.source,
            destination: known.destination,
            ports: [known.source_port, known.destination_port],
            is_served: is_served::<I>(known.flags),
        }
    }

    /// Delivers an inner packet that has lost its outer headers.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    #[inline(always)]
    pub fn deliver<I: KnownIp<FlowAddr = A>>(&self, ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
        if self.is_served {
            packet.base = 0;
            return self.answer(ctx, packet);
        }
        local::send(ctx, &mut packet.headers, self.macs, self.link, Path::TunnelIn)
    }

    // Not inlined: the packet's front would take stack in the caller.
    #[inline(never)]
    fn answer<I: KnownIp<FlowAddr = A>>(&self, ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
        self.serve(ctx, packet, Path::TunnelIn as u16)
    }

    /// Delivers a packet of a service, in a frame that starts at 0. One of its addresses stays as it
    /// is: a pod that reaches itself has no known flow. `path`: a number of [`Path`].
    #[inline(always)]
    fn serve<I: KnownIp<FlowAddr = A>>(&self, ctx: &TcContext, packet: &mut Parsed<I>, path: u16) -> Outcome {
        match packet.headers.ip.is_to(&self.destination.address()) {
            true => I::set_source(ctx, packet, self.source, self.ports)?,
            false => I::set_destination(ctx, packet, self.destination, self.ports)?,
        }
        packet.headers.ip.decrement_ttl();
        packet.headers.set_macs(self.macs);
        I::store_front(ctx, packet, self.ports)?;
        Ok(Verdict::counted(path, local::into(ctx, self.link)))
    }
}
