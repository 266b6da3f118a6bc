//! Outer headers of packets into the tunnel.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{NODE_TUNNEL_IPV6, NODE_VTEP, Node},
    addr::{Be16, Mac},
    ecn,
    names::{INNER_DESTINATION_MAC, VXLAN_OVERHEAD, VXLAN_OVERHEAD_IPV6},
    reason::Path,
};

use crate::{
    maps,
    packet::{Ip, Outer, Parsed, Way, encapsulate},
    verdict::{Attempt, Decision, Verdict},
};

/// Encapsulates and sends a pod's packet by a known route. `is_ipv6`: the tunnel's family. Returns
/// [`Decision::NONE`], with the packet unchanged, if the kernel refuses.
///
/// # Errors
/// [`Drop::RewriteFailed`](podwire_common::reason::Drop::RewriteFailed).
#[inline(always)]
pub fn send_known<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    way: &Way,
    is_ipv6: bool,
    source_port: Be16,
    inner: Mac,
) -> Attempt {
    let outer = outer_of(packet, is_ipv6, source_port, inner);
    let Ok(stored) = encapsulate::<I>(ctx, way, &outer, &packet.headers.ip.decremented()) else {
        return Ok(Decision::NONE);
    };
    stored?;
    Ok(Verdict::redirect(Path::TunnelOut, way.leave(ctx)).into())
}

/// Returns the fields of a packet's outer headers that differ from packet to packet.
#[inline(always)]
pub fn outer_of<I: Ip>(
    packet: &Parsed<I>,
    is_ipv6: bool,
    source_port: Be16,
    inner_destination_mac: Mac,
) -> Outer {
    Outer {
        is_ipv6,
        source_port,
        destination_port: maps::vxlan_port(),
        vni: maps::vni(),
        traffic_class: ecn::encapsulate(packet.headers.ip.traffic_class()),
        dont_fragment: packet.headers.ip.dont_fragment(),
        inner_destination_mac,
    }
}

/// Returns whether the tunnel to a node is one of IPv6.
#[inline(always)]
pub fn is_over_ipv6(node: &Node) -> bool {
    node.flags & NODE_TUNNEL_IPV6 != 0
}

/// Returns the bytes that the outer headers add to an IP packet.
#[inline(always)]
pub fn overhead(node: &Node) -> u32 {
    if is_over_ipv6(node) { VXLAN_OVERHEAD_IPV6 } else { VXLAN_OVERHEAD }
}

/// Returns the link destination of inner frames to a node.
#[inline(never)]
pub fn inner_destination(node: &Node) -> Mac {
    let vtep = if node.flags & NODE_VTEP == 0 { None } else { maps::vtep(&node.tunnel_endpoint) };
    vtep.map_or(Mac { bytes: INNER_DESTINATION_MAC }, |vtep| vtep.mac)
}
