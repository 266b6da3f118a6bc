//! Packets from another node inside VXLAN.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{NODE_IPSEC_PODS, NODE_IPSEC_TUNNEL, NODE_POD_NETWORK, Node},
    addr::Addr,
    ecn,
    flow::protocol,
    reason::{Drop, Path},
};

use super::{ends, fastpath, fastpath::KnownIp, flow, frontend, icmp_error, local, source, stack_flow};
use crate::{
    maps,
    packet::{
        ETHERNET_LENGTH, Ip, Ipv4, Ipv6, Loaded, OUTER_LENGTH, Parsed, Place, Skb, decapsulate, ethertype,
        get_tunnel_key, is_list, vni_of,
    },
    verdict::{Attempt, Decision, Outcome, Verdict},
};

/// Handles a VXLAN packet for this node that arrives on an uplink: delivers it, or leaves it to the
/// VXLAN device. Returns [`Decision::NONE`] for [`on_uplink6`].
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(never)]
pub fn on_uplink(ctx: &TcContext, packet: &mut Parsed) -> Attempt {
    let envelope = Envelope {
        vni: vni_of(ctx, packet.transport_offset() + 8)?,
        sender: packet.headers.source_address(),
        class: packet.headers.ip.traffic_class(),
    };
    if !packet.has_bare_header() {
        // The outer headers are not where the fast path expects them. `from_overlay` checks the
        // rest.
        envelope.check()?;
        return Ok(Verdict::PASS.into());
    }
    // Load in place of the outer packet: the stack has no room for both.
    let loaded = packet.load_inner(ctx, OUTER_LENGTH);
    if loaded.as_ref().is_ok_and(|loaded| loaded.headers().ethertype.get() == ethertype::IPV6) {
        return Ok(Decision::NONE);
    }
    open(ctx, &envelope, loaded, |_| Ok(())).map(Decision::from)
}

/// Does the same for an IPv6 packet, whose outer header [`on_uplink`] has checked.
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(always)]
pub fn on_uplink6(ctx: &TcContext) -> Outcome {
    let outer: Ipv4 = ctx.load_at(ETHERNET_LENGTH)?;
    let envelope = Envelope {
        vni: vni_of(ctx, OUTER_LENGTH - 8)?,
        sender: outer.source(),
        class: outer.traffic_class(),
    };
    let mut place = Place::<Ipv6>::new();
    let loaded = place.load_inner(ctx, OUTER_LENGTH);
    open(ctx, &envelope, loaded, |packet| source::refuse_unroutable(&packet.headers))
}

/// What the outer headers say.
struct Envelope {
    /// Network identifier, host order.
    vni: Option<u32>,
    /// The sending node.
    sender: Addr,
    /// DSCP and ECN.
    class: u8,
}

impl Envelope {
    /// Checks the outer headers, before the programs believe anything in the inner packet.
    #[inline(always)]
    fn check(&self) -> Result<(), Drop> {
        check_outer(self.vni, &self.sender)
    }
}

/// Delivers the inner packet of an envelope. `refuse` refuses addresses.
#[inline(always)]
fn open<I: KnownIp>(
    ctx: &TcContext,
    envelope: &Envelope,
    loaded: Result<Loaded<'_, I>, Drop>,
    refuse: impl FnOnce(&Parsed<I>) -> Result<(), Drop>,
) -> Outcome {
    let sender = &envelope.sender;
    let packet = match loaded.and_then(|loaded| inner(ctx, loaded)) {
        Ok(packet) => packet,
        // A false sender is reported before a fault.
        Err(reason) => return Err(envelope.check().err().unwrap_or(reason)),
    };
    if envelope.vni == Some(maps::vni())
        && !is_other_segments(ctx, packet)
        && let Some((link, macs)) = fastpath::from_tunnel(ctx, packet, sender)
    {
        return match unwrap(ctx, envelope.class, packet)? {
            true => local::send(ctx, &mut packet.headers, macs, link, Path::TunnelIn),
            false => Ok(Verdict::PASS),
        };
    }
    // Read the generation before the first lookup from which a flow may be learnt.
    packet.generation = maps::generation();
    envelope.check()?;
    let node = check_owner(packet, sender)?;
    refuse(packet)?;
    let Some(endpoint) = maps::endpoint(&packet.headers.destination_address()) else {
        return Ok(Verdict::PASS);
    };
    // The kernel asks its policies when the VXLAN device's socket receives the packet, and when it
    // forwards the inner packet.
    if node.flags & (NODE_IPSEC_TUNNEL | NODE_IPSEC_PODS) != 0 {
        return Ok(Verdict::PASS);
    }
    if is_other_segments(ctx, packet) || packet.headers.ttl() <= 1 {
        return Ok(Verdict::PASS);
    }
    // A later fragment may have overtaken its first one. The first one then came in outer
    // fragments, and takes the slower path through the device. The later fragment takes the same
    // path, so it queues behind the first one.
    if flow::complete(packet).is_err() || stack_flow::needs_stack(endpoint, packet) {
        return Ok(Verdict::PASS);
    }
    fastpath::learn_tunnel_in(ctx, packet, endpoint, sender);
    match unwrap(ctx, envelope.class, packet)? {
        true => local::deliver(ctx, &mut packet.headers, endpoint, Path::TunnelIn),
        false => Ok(Verdict::PASS),
    }
}

/// Returns whether the program must not decapsulate a large packet. The kernel would drop a UDP GSO
/// packet after the decapsulation. In a list, only the first packet would lose its outer headers.
/// The VXLAN device handles both.
#[inline(always)]
fn is_other_segments<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> bool {
    ctx.segment_payload() != 0 && (packet.protocol() != protocol::TCP || is_list(ctx, maps::skb_layout()))
}

/// Decapsulates a packet. Returns `false` if the kernel refuses; the packet is left to the VXLAN
/// device.
#[inline(always)]
fn unwrap<I: Ip>(ctx: &TcContext, outer_class: u8, packet: &mut Parsed<I>) -> Result<bool, Drop> {
    let class =
        ecn::decapsulate(outer_class, packet.headers.ip.traffic_class()).ok_or(Drop::EcnNotCapable)?;
    if decapsulate::<I>(ctx).is_err() {
        return Ok(false);
    }
    packet.headers.ip.set_traffic_class(class);
    Ok(true)
}

/// Handles an IPv4 packet that the VXLAN device has decapsulated.
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(always)]
pub fn on_device(ctx: &TcContext) -> Outcome {
    decapsulated::<Ipv4>(
        ctx,
        |packet| source::refuse_loopback(&packet.headers),
        |packet| frontend::from_pod(ctx, packet, Path::TunnelToStack),
    )
}

/// Does the same for IPv6.
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(always)]
pub fn on_device6(ctx: &TcContext) -> Outcome {
    decapsulated::<Ipv6>(
        ctx,
        |packet| source::refuse_unroutable(&packet.headers),
        |packet| frontend::from_pod(ctx, packet, Path::TunnelToStack),
    )
}

/// `refuse` refuses addresses, `to_node` handles a packet that is for no pod.
#[inline(always)]
fn decapsulated<I: Ip>(
    ctx: &TcContext,
    refuse: impl FnOnce(&Parsed<I>) -> Result<(), Drop>,
    to_node: impl FnOnce(&Parsed<I>) -> Outcome,
) -> Outcome {
    let key = get_tunnel_key(ctx).ok_or(Drop::TunnelPeerUnknown)?;
    check_outer(Some(key.vni), &key.remote)?;
    // The VXLAN device has taken an inner VLAN tag out of the frame.
    if ctx.has_vlan_tag() {
        return Err(Drop::InnerProtocolUnknown);
    }
    let mut place = Place::<I>::new();
    let packet = inner(ctx, place.load(ctx)?)?;
    let node = check_owner(packet, &key.remote)?;
    refuse(packet)?;
    // The inner link addresses are constants that no device has.
    ctx.set_packet_host();
    let destination = packet.headers.destination_address();
    let Some(endpoint) = ends::receiving_pod(&packet.headers, &destination) else {
        if flow::complete(packet).is_err() {
            flow::note_early(packet);
            return Ok(Verdict::stack(Path::TunnelToStack));
        }
        return to_node(packet);
    };
    flow::complete(packet)?;
    if packet.headers.ttl() <= 1
        || node.flags & NODE_IPSEC_PODS != 0
        || stack_flow::needs_stack(endpoint, packet)
    {
        return Ok(Verdict::stack(Path::TunnelToStack));
    }
    local::deliver(ctx, &mut packet.headers, endpoint, Path::TunnelInDevice)
}

/// See [`Envelope::check`].
#[inline(always)]
fn check_outer(vni: Option<u32>, sender: &Addr) -> Result<(), Drop> {
    if !maps::is_tunnel_peer(sender) {
        return Err(Drop::TunnelPeerUnknown);
    }
    if vni != Some(maps::vni()) {
        return Err(Drop::TunnelVniUnknown);
    }
    Ok(())
}

/// Parses the inner packet.
#[inline(always)]
fn inner<'a, I: Ip>(ctx: &TcContext, loaded: Loaded<'a, I>) -> Result<&'a mut Parsed<I>, Drop> {
    if !loaded.headers().is_ip() {
        return Err(Drop::InnerProtocolUnknown);
    }
    Ok(loaded.parse(ctx)?)
}

/// Checks that the sending node owns the inner source: the source is in the node's podCIDRs, or is
/// one of its own addresses. Returns the entry of the source.
#[inline(always)]
fn check_owner<I: Ip>(packet: &Parsed<I>, sender: &Addr) -> Result<&'static Node, Drop> {
    match ends::sending_node(&packet.headers, &packet.headers.source_address()) {
        Some(node) if node.tunnel_endpoint == *sender => {
            if node.flags & NODE_POD_NETWORK != 0 {
                icmp_error::check_from_pod(packet)?;
            }
            Ok(node)
        }
        _ => Err(Drop::InnerSourceNotOwned),
    }
}
