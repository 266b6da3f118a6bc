//! Pods' packets that the host stack sends out to the world.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        FAMILY_IPV4, FAMILY_IPV6, NETWORK_KEEPS_ADDRESS, NETWORK_OF_SERVICES, NETWORK_REFUSED,
        STATE_ESTABLISHED, TRANSLATION_SNAT,
    },
    addr::Addr,
    nat,
    reason::{Drop, Path},
};

use super::{
    super::{flow, source, translation},
    past_stack::is_untouched,
};
use crate::{
    maps,
    packet::{Ip, Parsed, Skb, source_towards, translate},
    verdict::{Outcome, Verdict},
};

/// Translates the source of a pod's packet that leaves for the world.
///
/// # Errors
/// The reason why the packet cannot be translated. It leaves with the pod's address only if that is
/// intended.
#[inline(never)]
pub fn out<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    flow::complete(packet)?;
    let destination = packet.headers.destination_address();
    let network = maps::network(&destination);
    if network & (NETWORK_KEEPS_ADDRESS | NETWORK_REFUSED) == NETWORK_REFUSED {
        return Err(Drop::IpsecPolicy);
    }
    // Neither the programs nor the host's rules have translated it: a connection whose translation is
    // gone, for example. The world has no services of this cluster.
    if network & NETWORK_OF_SERVICES != 0 {
        return Err(Drop::ServiceAddressUnknown);
    }
    if let Some(entry) = translation::of(packet) {
        let half = entry.get();
        // If the uplink differs, the route has changed, and replies by the old uplink are lost
        // anyway. An ICMP error ends no translation, whatever its uplink: it is about the flow that
        // its receiver knows.
        if half.kind == TRANSLATION_SNAT && (half.ifindex == ctx.ifindex() || packet.is_error) {
            if ctx.is_beginning() {
                entry.set_past_stack::<I::FlowAddr>(&packet.flow, is_untouched(ctx, packet));
                entry.set_asked();
            }
            translation::touch(&entry, packet);
            translate(ctx, packet, half)?;
            return Ok(Verdict::stack(Path::SnatOut));
        }
        if half.kind == TRANSLATION_SNAT {
            translation::remove::<I>(&packet.flow, half);
        }
    }
    let idle = nat::idle_timeout(STATE_ESTABLISHED, packet.flow.protocol) * 1_000_000_000;
    // Only a flow that a pod began is translated: an outside client gets its answer from the
    // address that it asked. The first packet of a TCP connection shows by itself that the pod
    // began, so `INBOUND_FLOWS` does not count then. Anyone on the link can make an entry there, by
    // a packet to a pod's own address.
    if (!packet.begins_connection() && maps::is_inbound_flow(&packet.flow, idle))
        || network & NETWORK_KEEPS_ADDRESS != 0
    {
        return Ok(Verdict::stack(Path::Untranslated));
    }
    if packet.is_error {
        return Err(Drop::SnatProtocolUnknown);
    }
    translation::check(packet)?;
    // This tunnel packet would leave with the node's address, which the other nodes trust. It may
    // reach one of them by an address that `NODES` does not have.
    if !maps::is_direct() && source::is_tunnel(packet) {
        return Err(Drop::VxlanFromPod);
    }
    let mut to = translation::begin(TRANSLATION_SNAT, ctx.ifindex(), &packet.flow);
    to.source = address_towards::<I>(ctx, &destination)?;
    to.past_stack = is_untouched(ctx, packet).into();
    to.asked = maps::jiffies();
    translation::establish::<I>(ctx, &packet.flow, &mut to)?;
    translate(ctx, packet, &to)?;
    Ok(Verdict::stack(Path::SnatOut))
}

/// Returns the address from which the node itself would send by this uplink.
#[inline(always)]
fn address_towards<I: Ip>(ctx: &TcContext, destination: &Addr) -> Result<Addr, Drop> {
    match source_towards::<I>(ctx, destination) {
        // With `use_tempaddr`, the kernel may choose a temporary address (RFC 8981). Replies must
        // still find the node when that address has gone, so the agent keeps it out of `NODES`.
        Some(address) if I::FAMILY == FAMILY_IPV4 || maps::is_own_address(&address) => Ok(address),
        _ => address_of::<I>(ctx.ifindex()),
    }
}

/// Returns a link's own address of the family.
///
/// # Errors
/// [`Drop::SnatNoAddress`].
#[inline(always)]
pub(super) fn address_of<I: Ip>(ifindex: u32) -> Result<Addr, Drop> {
    if I::FAMILY == FAMILY_IPV6 {
        return match maps::link6(ifindex) {
            Some(link) if link.source != Addr::UNSPECIFIED => Ok(link.source),
            _ => Err(Drop::SnatNoAddress),
        };
    }
    match maps::link(ifindex) {
        Some(link) if link.ipv4 != Addr::UNSPECIFIED => Ok(link.ipv4),
        _ => Err(Drop::SnatNoAddress),
    }
}
