//! Packets from another node inside VXLAN.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{CLIENTS_OUTSIDE, FAMILY_IPV4, NODE_IPSEC_PODS, NODE_IPSEC_TUNNEL, NODE_POD_NETWORK, Node},
    addr::{Addr, Be16},
    ecn,
    flow::protocol,
    reason::{Drop, Path},
};

use super::{
    ends, event, fastpath, fastpath::KnownIp, flow, frontend, icmp_error, local, outside, service, source,
    stack_flow,
};
use crate::{
    maps,
    packet::{
        ETHERNET_LENGTH, Ip, Ipv4, Ipv6, Loaded, OUTER_LENGTH, OUTER_LENGTH6, Parsed, Place, Skb,
        decapsulate, ethertype, get_tunnel_key, is_list, set_fixed_part, vni_of,
    },
    verdict::{Attempt, Decision, Outcome, Verdict},
};

/// Bytes of a UDP header.
const UDP_LENGTH: u32 = 8;
/// Bytes of a VXLAN header.
const VXLAN_LENGTH: u32 = 8;

/// Handles a VXLAN packet for this node that arrives on an uplink: delivers it, or leaves it to the
/// VXLAN device. Returns [`Decision::NONE`] for [`inner6`].
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(never)]
pub fn on_uplink(ctx: &TcContext, packet: &mut Parsed) -> Attempt {
    let envelope = Envelope::of(ctx, packet)?;
    if !packet.has_bare_header() {
        return envelope.for_device().map(Decision::from);
    }
    // Load in place of the outer packet: the stack has no room for both.
    let loaded = packet.load_inner(ctx, OUTER_LENGTH);
    if loaded.as_ref().is_ok_and(|loaded| loaded.headers().ethertype.get() == ethertype::IPV6) {
        return Ok(Decision::NONE);
    }
    open(ctx, &envelope, loaded, |_| Ok(())).map(Decision::from)
}

/// Does the same for a VXLAN packet over IPv6.
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(never)]
pub fn on_uplink_over_ipv6(ctx: &TcContext, packet: &Parsed<Ipv6>) -> Attempt {
    let inner_type = OUTER_LENGTH6 + ETHERNET_LENGTH - size_of::<Be16>() as u32;
    let is_ipv6 = ctx.load_at::<Be16>(inner_type).is_ok_and(|found| found.get() == ethertype::IPV6);
    if packet.has_bare_header() && is_ipv6 {
        return Ok(Decision::NONE);
    }
    Envelope::of(ctx, packet)?.for_device().map(Decision::from)
}

/// Handles the inner packet of IPv6. The functions for the outer packet have checked that nothing
/// stands between the outer IP header and UDP.
///
/// # Errors
/// The reason why the tunnel refuses the packet.
#[inline(always)]
pub fn inner6(ctx: &TcContext) -> Outcome {
    let envelope = match ctx.ethertype() {
        ethertype::IPV4 => Envelope::at::<Ipv4>(ctx, OUTER_LENGTH)?,
        _ => Envelope::at::<Ipv6>(ctx, OUTER_LENGTH6)?,
    };
    let mut place = Place::<Ipv6>::new();
    let loaded = place.load_inner(ctx, envelope.length);
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
    /// Bytes of the outer headers.
    length: u32,
}

impl Envelope {
    /// Reads the outer headers of a parsed packet. [`Self::length`] is that of headers without
    /// options.
    #[inline(always)]
    fn of<O: Ip>(ctx: &TcContext, packet: &Parsed<O>) -> Result<Self, Drop> {
        Ok(Self {
            vni: vni_of(ctx, packet.transport_offset() + UDP_LENGTH)?,
            sender: packet.headers.source_address(),
            class: packet.headers.ip.traffic_class(),
            length: OUTER_LENGTH,
        })
    }

    /// Reads the outer headers of a packet that has no options, `length` bytes.
    #[inline(always)]
    fn at<O: Ip>(ctx: &TcContext, length: u32) -> Result<Self, Drop> {
        let outer: O = ctx.load_at(ETHERNET_LENGTH)?;
        let vni = vni_of(ctx, length - VXLAN_LENGTH)?;
        Ok(Self { vni, sender: outer.source(), class: outer.traffic_class(), length })
    }

    /// Leaves a packet to the VXLAN device: its headers are not where the fast path expects them,
    /// or the families do not fit. `from_overlay` checks the rest.
    #[inline(always)]
    fn for_device(&self) -> Outcome {
        self.check()?;
        Ok(Verdict::PASS)
    }

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
        && let Some(way) = fastpath::from_tunnel(ctx, packet, sender)
    {
        return match unwrap(ctx, envelope, packet)? {
            true => way.deliver(ctx, packet),
            false => Ok(Verdict::PASS),
        };
    }
    event::begin(ctx, packet);
    // Read the generation before the first lookup from which a flow may be learnt.
    packet.generation = maps::generation();
    envelope.check()?;
    let node = check_owner(packet, sender)?;
    refuse(packet)?;
    let endpoint = maps::endpoint(&packet.headers.destination_address());
    // The kernel asks its policies when the VXLAN device's socket receives the packet, and when it
    // forwards the inner packet.
    if node.flags & (NODE_IPSEC_TUNNEL | NODE_IPSEC_PODS) != 0 {
        return Ok(Verdict::PASS);
    }
    if is_other_segments(ctx, packet) || packet.headers.ttl() <= 1 {
        return Ok(Verdict::PASS);
    }
    let Some(endpoint) = endpoint else {
        // The kernel would still take a large segment for one in a tunnel, and might leave its
        // segmentation to a link that cannot do that. The VXLAN device clears the mark.
        let is_single = ctx.segment_payload() == 0;
        return match is_single && outside::is_relayed_answer(packet) && unwrap_whole(ctx, envelope, packet)? {
            true => Ok(Verdict::OUTSIDE),
            false => Ok(Verdict::PASS),
        };
    };
    // A later fragment may have overtaken its first one. The first one then came in outer
    // fragments, and takes the slower path through the device. The later fragment takes the same
    // path, so it queues behind the first one.
    if flow::complete(packet).is_err() {
        return Ok(Verdict::PASS);
    }
    let answer = service::answer(packet);
    match &answer {
        Some(half) => fastpath::learn_answer_in(ctx, packet, endpoint, sender, half),
        None if stack_flow::needs_stack(endpoint, packet) => return Ok(Verdict::PASS),
        None => fastpath::learn_tunnel_in(ctx, packet, endpoint, sender),
    }
    if answer.is_some() {
        return match unwrap_whole(ctx, envelope, packet)? {
            true => Ok(Verdict::SERVE),
            false => Ok(Verdict::PASS),
        };
    }
    match unwrap(ctx, envelope, packet)? {
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
fn unwrap<I: Ip>(ctx: &TcContext, envelope: &Envelope, packet: &mut Parsed<I>) -> Result<bool, Drop> {
    let class =
        ecn::decapsulate(envelope.class, packet.headers.ip.traffic_class()).ok_or(Drop::EcnNotCapable)?;
    let length = if I::FAMILY == FAMILY_IPV4 { OUTER_LENGTH } else { envelope.length };
    if decapsulate::<I>(ctx, length).is_err() {
        return Ok(false);
    }
    packet.headers.ip.set_traffic_class(class);
    Ok(true)
}

/// Does the same as [`unwrap`] for a program that loads the packet again: it must find the congestion
/// that the outer header reports.
#[inline(never)]
fn unwrap_whole<I: Ip>(ctx: &TcContext, envelope: &Envelope, packet: &mut Parsed<I>) -> Result<bool, Drop> {
    let class = packet.headers.ip.traffic_class();
    if !unwrap(ctx, envelope, packet)? {
        return Ok(false);
    }
    if packet.headers.ip.traffic_class() != class {
        set_fixed_part::<I>(ctx, &packet.headers.ip.fixed_part())?;
    }
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
        |packet| frontend::from_pod(ctx, packet, CLIENTS_OUTSIDE),
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
        |packet| frontend::from_pod(ctx, packet, CLIENTS_OUTSIDE),
    )
}

/// `refuse` refuses addresses, `to_node` handles a packet that is for no pod.
#[inline(always)]
fn decapsulated<I: Ip>(
    ctx: &TcContext,
    refuse: impl FnOnce(&Parsed<I>) -> Result<(), Drop>,
    to_node: impl FnOnce(&Parsed<I>) -> Outcome,
) -> Outcome {
    let key = get_tunnel_key(ctx);
    if let Some(key) = &key {
        check_outer(Some(key.vni), &key.remote)?;
    }
    // The VXLAN device has taken an inner VLAN tag out of the frame.
    if ctx.has_vlan_tag() {
        return Err(Drop::InnerProtocolUnknown);
    }
    let mut place = Place::<I>::new();
    let packet = inner(ctx, place.load(ctx)?)?;
    // The inner link addresses are constants that no device has.
    ctx.set_packet_host();
    let Some(key) = key else {
        // It did not come out of the tunnel. The programs answer packets of the host stack here.
        return if packet.is_error { Ok(Verdict::PASS) } else { Err(Drop::TunnelPeerUnknown) };
    };
    let node = check_owner(packet, &key.remote)?;
    refuse(packet)?;
    event::begin(ctx, packet);
    let destination = packet.headers.destination_address();
    let Some(endpoint) = ends::receiving_pod(&packet.headers, &destination) else {
        if flow::complete(packet).is_err() {
            flow::note_early(packet);
            return Ok(Verdict::stack(Path::TunnelToStack));
        }
        return to_node(packet);
    };
    flow::complete(packet)?;
    if packet.headers.ttl() <= 1 || node.flags & NODE_IPSEC_PODS != 0 {
        return Ok(Verdict::stack(Path::TunnelToStack));
    }
    service::deliver_or_serve(ctx, packet, endpoint)
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
