//! XDP of an uplink, off by default: drops tunnel packets early that `from_uplink` would refuse for
//! their outer headers.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use podwire_common::{
    addr::{Addr, Be16},
    flow::protocol,
    reason::Drop,
};

use crate::{
    maps,
    packet::{Fragment, Ip, Ipv4, Ipv6, XdpHeaders, load_xdp},
    stage::event,
    verdict::finish_xdp,
};

#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    let outcome = verdict(&ctx);
    if let Err(reason) = outcome {
        event::of_xdp_drop(&ctx, reason);
    }
    finish_xdp(&ctx, outcome)
}

#[inline(always)]
fn verdict(ctx: &XdpContext) -> Result<(), Drop> {
    let link = ctx.ingress_ifindex() as u32;
    // IP options and extension headers move the headers: `from_uplink` checks such packets.
    match load_xdp::<Ipv4>(ctx) {
        Some(headers) if headers.outer.is_ip() => {
            let ip = &headers.outer.ip;
            let is_bare = ip.version_length == 0x45
                && ip.protocol == protocol::UDP
                && matches!(ip.fragment_part(&()), Fragment::Whole);
            refuse(&headers, is_bare, maps::link(link).map(|link| &link.tunnel_address))
        }
        Some(_) => match load_xdp::<Ipv6>(ctx) {
            Some(headers) if headers.outer.is_ip() => {
                let is_bare = headers.outer.ip.next_header == protocol::UDP;
                refuse(&headers, is_bare, maps::link6(link).map(|link| &link.tunnel_address))
            }
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

/// Refuses a tunnel packet for its outer headers. `is_bare`: nothing stands between the outer IP
/// header and UDP. `tunnel_address`: this node's end of a tunnel by the link.
#[inline(always)]
fn refuse<I: Ip>(headers: &XdpHeaders<I>, is_bare: bool, tunnel_address: Option<&Addr>) -> Result<(), Drop> {
    let outer = &headers.outer;
    let port = Be16 { bytes: [headers.udp[2], headers.udp[3]] };
    let is_tunnel = is_bare && port == maps::vxlan_port();
    if !is_tunnel || tunnel_address != Some(&outer.destination_address()) {
        return Ok(());
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
