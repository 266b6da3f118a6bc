//! From another node inside VXLAN.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::KNOWN_TUNNEL_IN,
    addr::{Addr, Mac},
    ecn,
    flow::protocol,
    reason::{Drop, Path},
};

use super::{flow, frontend, known, local, stack_flow};
use crate::{
    maps,
    packet::{Ipv4, OUTER_LENGTH, Skb, decapsulate, get_tunnel_key, vni_of},
    verdict::{Outcome, Verdict},
};

/// A VXLAN packet for this node, as it arrives on an uplink: delivered from here, or left to the VXLAN device.
///
/// # Errors
/// The reason why the tunnel does not take it.
#[inline(never)]
pub fn on_uplink(ctx: &TcContext, outer: &Ipv4) -> Outcome {
    let transport = outer.headers.transport_offset(0);
    let vni = vni_of(ctx, transport + 8)?;
    let mut packet = Ipv4::at(OUTER_LENGTH);
    if outer.headers.version_length == 0x45
        && vni == Some(maps::vni())
        && packet.load(ctx).is_ok()
        && packet.headers.is_ipv4()
        && packet.parse(ctx).is_ok()
        && let Some((link, pod_mac, host_mac)) = known::from_tunnel(ctx, &mut packet, &outer.flow.source)
        && !is_other_segments(ctx, &packet)
    {
        return unwrap(ctx, outer, &mut packet, (pod_mac, host_mac), link);
    }
    check_outer(vni, &outer.flow.source)?;
    if outer.headers.version_length != 0x45 {
        // The outer headers are not where the fast way expects them. The device's ingress checks the rest.
        return Ok(Verdict::PASS);
    }
    check_inner(ctx, &mut packet, &outer.flow.source)?;
    let Some(endpoint) = maps::endpoint(&packet.headers.destination_address()) else {
        return Ok(Verdict::PASS);
    };
    if is_other_segments(ctx, &packet) || packet.headers.ttl <= 1 {
        return Ok(Verdict::PASS);
    }
    // A later fragment may have overtaken its first here, which came in outer fragments and takes the slower way
    // through the device: behind it in the device's queue it is in order again.
    if flow::complete(&mut packet).is_err() || stack_flow::needs_stack(endpoint, &packet) {
        return Ok(Verdict::PASS);
    }
    known::remember_in(ctx, &packet, endpoint, KNOWN_TUNNEL_IN, &outer.flow.source);
    unwrap(ctx, outer, &mut packet, (endpoint.pod_mac, endpoint.host_mac), endpoint.ifindex)
}

/// UDP GSO that the program decapsulates never reaches its socket: the kernel's device does all but TCP right.
#[inline(always)]
fn is_other_segments(ctx: &TcContext, packet: &Ipv4) -> bool {
    packet.headers.protocol != protocol::TCP && ctx.segment_payload() != 0
}

/// Decapsulates a packet and sends it into its pod; left to the VXLAN device where the kernel refuses.
#[inline(always)]
fn unwrap(ctx: &TcContext, outer: &Ipv4, packet: &mut Ipv4, macs: (Mac, Mac), link: u32) -> Outcome {
    let class = ecn::decapsulate(outer.headers.traffic_class, packet.headers.traffic_class)
        .ok_or(Drop::EcnNotCapable)?;
    if decapsulate(ctx).is_err() {
        return Ok(Verdict::PASS);
    }
    packet.headers.set_traffic_class(class);
    local::send(ctx, &mut packet.headers, macs, link, Path::TunnelIn)
}

/// A packet that the VXLAN device has decapsulated.
///
/// # Errors
/// The reason why the tunnel does not take it.
#[inline(always)]
pub fn on_device(ctx: &TcContext) -> Outcome {
    let key = get_tunnel_key(ctx).ok_or(Drop::TunnelPeerUnknown)?;
    check_outer(Some(key.vni), &key.remote)?;
    // A tag inside has been taken out of the frame by the VXLAN device.
    if ctx.has_vlan_tag() {
        return Err(Drop::InnerProtocolUnknown);
    }
    let mut packet = Ipv4::at(0);
    check_inner(ctx, &mut packet, &key.remote)?;
    // The inner link addresses are constants, which no device bears.
    ctx.set_packet_host();
    let Some(endpoint) = maps::endpoint(&packet.headers.destination_address()) else {
        if flow::complete(&mut packet).is_err() {
            flow::note_early(&packet);
            return Ok(Verdict::stack(Path::TunnelToStack));
        }
        return frontend::from_pod(ctx, &packet, Path::TunnelToStack);
    };
    flow::complete(&mut packet)?;
    if packet.headers.ttl <= 1 || stack_flow::needs_stack(endpoint, &packet) {
        return Ok(Verdict::stack(Path::TunnelToStack));
    }
    local::deliver(ctx, &mut packet.headers, endpoint, Path::TunnelInDevice)
}

/// Checks what the outer headers say, before anything of the inner packet is believed.
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

/// Parses the inner packet, whose source must be the sending node's: in its podCIDRs, or one of its own addresses.
#[inline(always)]
fn check_inner(ctx: &TcContext, packet: &mut Ipv4, sender: &Addr) -> Result<(), Drop> {
    packet.load(ctx)?;
    if !packet.headers.is_ipv4() {
        return Err(Drop::InnerProtocolUnknown);
    }
    packet.parse(ctx)?;
    match maps::node(&packet.headers.source_address()) {
        Some(node) if node.tunnel_endpoint == *sender => Ok(()),
        _ => Err(Drop::InnerSourceNotOwned),
    }
}
