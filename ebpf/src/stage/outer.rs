//! Outer headers of packets into the tunnel.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Be16, Mac},
    ecn,
    reason::Path,
};

use crate::{
    maps,
    packet::{Ip, Outer, Parsed, Way, encapsulate},
    verdict::{Attempt, Decision, Verdict},
};

/// Encapsulates and sends a pod's packet by a known route. `is_ipv6`: the tunnel's family. Returns [`Decision::NONE`], with the
/// packet unchanged, if the kernel refuses.
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
