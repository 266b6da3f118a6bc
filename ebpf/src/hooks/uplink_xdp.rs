//! XDP of an uplink, off by default: drops tunnel packets early that `from_uplink` would refuse for
//! their outer headers.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use podwire_common::{addr::Be16, flow::protocol, reason::Drop};

use crate::{
    maps,
    packet::{Fragment, Ip as _, load_xdp},
    verdict::finish_xdp,
};

#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    finish_xdp(&ctx, verdict(&ctx))
}

#[inline(always)]
fn verdict(ctx: &XdpContext) -> Result<(), Drop> {
    let Some(headers) = load_xdp(ctx) else {
        return Ok(());
    };
    let outer = &headers.outer;
    let port = Be16 { bytes: [headers.udp[2], headers.udp[3]] };
    // IP options move the headers: `from_uplink` checks such packets.
    let is_tunnel = outer.is_ip()
        && outer.ip.version_length == 0x45
        && outer.ip.protocol == protocol::UDP
        && matches!(outer.ip.fragment_part(&()), Fragment::Whole)
        && port == maps::vxlan_port();
    if !is_tunnel {
        return Ok(());
    }
    match maps::link(ctx.ingress_ifindex() as u32) {
        Some(link) if link.tunnel_address == outer.destination_address() => {}
        _ => return Ok(()),
    }
    if !maps::is_tunnel_peer(&outer.source_address()) {
        return Err(Drop::TunnelPeerUnknown);
    }
    let [flags, _, _, _, a, b, c, _] = headers.vxlan;
    if flags != 0x08 || u32::from_be_bytes([0, a, b, c]) != maps::vni() {
        return Err(Drop::TunnelVniUnknown);
    }
    Ok(())
}
