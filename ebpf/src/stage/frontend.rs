//! hostPorts: a pod answers at addresses and ports of this node, past the host stack in both
//! directions.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Backend, CLIENTS_INSIDE, Endpoint, FAMILY_IPV4, FAMILY_IPV6, TRANSLATION_HOST_PORT,
        TRANSLATION_OUTSIDE, TRANSLATION_SERVICE, TRANSLATION_TUNNEL, Translation,
    },
    reason::{Drop, Path},
};

use super::{direct, local, outside, service, translation, tunnel_out};
use crate::{
    maps,
    packet::{Ip, Parsed, Skb, translate},
    verdict::{Outcome, Verdict},
};

/// Delivers the first packet of a flow to a hostPort to the pod behind it. All other packets pass.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::RewriteFailed`], those of [`translation::establish`].
#[inline(never)]
pub fn request<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> Outcome {
    let flow = &packet.flow;
    // The host answers a later packet of a TCP connection without a translation with a reset.
    if !packet.begins_flow() || packet.is_error || packet.is_authenticated() {
        return Ok(Verdict::PASS);
    }
    // The pod could not answer: a pod's link-local traffic ends at its link.
    if I::FAMILY == FAMILY_IPV6 && flow.source.is_link_local() {
        return Ok(Verdict::PASS);
    }
    let Some(backend) = backend_of(packet) else {
        return Ok(Verdict::PASS);
    };
    let mut to = translation::begin(TRANSLATION_HOST_PORT, ctx.ifindex(), flow);
    to.destination = backend.address;
    to.destination_port = backend.port;
    if flow.source == backend.address {
        // The pod would answer itself directly, so it must see another source.
        let endpoint = maps::endpoint(&backend.address).ok_or(Drop::BackendGone)?;
        to.source = endpoint.gateway;
        to.hairpin = 1;
    }
    translation::establish::<I>(ctx, flow, &mut to)?;
    deliver(ctx, packet, &to, Path::HostPortIn)
}

/// Handles a pod's packet to an address of this node, from a pod here ([`CLIENTS_INSIDE`]) or out of
/// the tunnel ([`CLIENTS_OUTSIDE`]). It goes to a hostPort or a service, or it is the reply to a flow
/// that got an address of this node. All other packets go to the host stack.
///
/// # Errors
/// As [`request`]; [`Drop::FragmentBeforeFirst`].
#[inline(never)]
pub fn from_pod<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, clients: u8) -> Outcome {
    let outcome = match translation::of(packet) {
        Some(entry) if entry.get().kind == TRANSLATION_HOST_PORT && entry.get().reply == 0 => {
            if packet.is_overtaken {
                return Err(Drop::FragmentBeforeFirst);
            }
            translation::touch(&entry, packet);
            deliver(ctx, packet, entry.get(), Path::HostPortIn)
        }
        Some(entry) if entry.get().kind == TRANSLATION_TUNNEL && entry.get().reply != 0 => {
            if packet.is_overtaken {
                return Err(Drop::FragmentBeforeFirst);
            }
            translation::touch(&entry, packet);
            translate(ctx, packet, entry.get())?;
            return Ok(Verdict::stack(Path::SnatIn));
        }
        Some(entry) if entry.get().kind == TRANSLATION_SERVICE => return Ok(Verdict::SERVE),
        Some(entry) if outside::is_of(entry.get()) => return outside::claim(packet),
        Some(_) => Ok(Verdict::PASS),
        None => request(ctx, packet),
    };
    let (of_service, otherwise) = match clients {
        CLIENTS_INSIDE => (Verdict::SERVE, Path::ToStack),
        _ => (Verdict::OUTSIDE, Path::TunnelToStack),
    };
    match outcome {
        Ok(Verdict::PASS) if service::begins_flow(packet, clients) => Ok(of_service),
        Ok(Verdict::PASS) => Ok(Verdict::stack(otherwise)),
        other => other,
    }
}

/// Returns the translation of a reply from behind a hostPort or a service, or `None` if the packet is
/// no such reply.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn reply_of_pod<I: Ip>(packet: &Parsed<I>) -> Option<&'static Translation> {
    let entry = translation::of(packet)?;
    let half = entry.get();
    if !matches!(half.kind, TRANSLATION_HOST_PORT | TRANSLATION_OUTSIDE | TRANSLATION_SERVICE)
        || half.reply == 0
    {
        return None;
    }
    // The program for services does the same.
    if half.kind != TRANSLATION_SERVICE {
        translation::touch(&entry, packet);
    }
    Some(half)
}

/// Returns the backend of the destination, if that is an address of this node. A hostIP may be any
/// address, and 127.0.0.1 is for the node's own processes.
#[inline(always)]
fn backend_of<I: Ip>(packet: &Parsed<I>) -> Option<&'static Backend> {
    if I::FAMILY == FAMILY_IPV4 { look_up(packet) } else { look_up_apart(packet) }
}

// Not inlined: the key would take stack in the caller.
#[inline(never)]
fn look_up_apart<I: Ip>(packet: &Parsed<I>) -> Option<&'static Backend> {
    look_up(packet)
}

#[inline(always)]
fn look_up<I: Ip>(packet: &Parsed<I>) -> Option<&'static Backend> {
    let flow = &packet.flow;
    let backend = maps::backend(&flow.destination, &I::ANY_ADDRESS, flow.destination_port, flow.protocol)?;
    maps::is_own_address(&flow.destination).then_some(backend)
}

/// Delivers a request to the pod behind a hostPort, or a reply to a client that is a pod here. The
/// TTL stays as it is: the client takes the node's address for the pod's, so it must see no hop
/// between them.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::RewriteFailed`].
#[inline(never)]
pub fn deliver<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation, path: Path) -> Outcome {
    let endpoint = maps::endpoint(&to.destination).ok_or(Drop::BackendGone)?;
    translate(ctx, packet, to)?;
    local::hand_over(ctx, endpoint, if to.hairpin == 0 { path } else { Path::Hairpin })
}

/// Sends a pod's reply back to the client of its hostPort or service. The reply takes the way of the request,
/// and bypasses the host's own rules. If its TTL has run out, it goes to the host stack.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::IpsecPolicy`], [`Drop::NoRouteBack`], [`Drop::RewriteFailed`].
#[inline(always)]
pub fn reply<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, endpoint: &Endpoint, to: &Translation) -> Outcome {
    let is_outside = to.kind == TRANSLATION_OUTSIDE;
    let path = if is_outside { Path::ServiceOut } else { Path::HostPortOut };
    if !is_outside && maps::endpoint(&to.destination).is_some() {
        return deliver(ctx, packet, to, path);
    }
    if packet.headers.ttl() <= 1 {
        return Ok(Verdict::stack(Path::ToStack));
    }
    if to.ifindex != maps::vxlan_ifindex() {
        return direct::reply(ctx, packet, Some(endpoint), to, path);
    }
    tunnel_out::reply(ctx, packet, Some(endpoint), to, path, |_, _| {})
}
