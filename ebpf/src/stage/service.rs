//! Services: a pod's packet to a service goes to one of its backends, and the answer comes back from
//! the service. The programs translate on the client's node, so other nodes see a pod's packet to a
//! pod.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        Backend, CLIENTS_INSIDE, Endpoint, NODE_ADDRESS, NODE_IPSEC_PODS, NODE_LOCAL, SERVICE_REFUSES,
        STATE_REPLIED, Service, TRANSLATION_SERVICE, Translation,
    },
    addr::Addr,
    epoch,
    flow::protocol,
    nat,
    reason::{Drop, Hook, Path},
};

use super::{
    direct, ends, fastpath, fastpath::KnownIp, flow, local, service_network, snat, stack_flow, translation,
    tunnel_out,
};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ip, Parsed, Skb, forward, translate},
    verdict::{Outcome, Verdict},
};

/// Begins the translation of a pod's packet to a service. Returns `false` for all other packets.
///
/// # Errors
/// Those of [`refuse`] and [`translation::establish`].
#[inline(never)]
fn begin<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, endpoint: &Endpoint) -> Result<bool, Drop> {
    let flow = &packet.flow;
    if !packet.begins_flow() || packet.is_error || packet.is_authenticated() {
        return Ok(false);
    }
    let Some(service) = at(packet, CLIENTS_INSIDE) else {
        return Ok(false);
    };
    refuse(service, &flow.source)?;
    let Some(backend) = maps::backend_for(service, &flow.source) else {
        return Ok(false);
    };
    let uplink = maps::node(&backend.address).map_or(0, |node| node.uplink);
    let mut to = translation::begin(TRANSLATION_SERVICE, uplink, flow);
    lead_to(&mut to, flow.protocol, service, backend);
    if flow.source == backend.address {
        // The pod would answer itself directly, so it must see another source.
        to.source = endpoint.gateway;
        to.hairpin = 1;
    }
    translation::establish::<I>(ctx, flow, &mut to)?;
    Ok(true)
}

/// Refuses a client's new flow to a service.
///
/// # Errors
/// [`Drop::NoBackend`], [`Drop::NoLocalBackend`], [`Drop::SourceRange`].
#[inline(always)]
pub fn refuse(service: &Service, client: &Addr) -> Result<(), Drop> {
    if !maps::admits(service, client) {
        return Err(Drop::SourceRange);
    }
    service.refusal().map_or(Ok(()), Err)
}

/// Notes in a translation which backend was chosen, and from which list.
#[inline(always)]
pub fn lead_to(to: &mut Translation, protocol_number: u8, service: &Service, backend: &Backend) {
    to.destination = backend.address;
    to.destination_port = backend.port;
    to.list = service.list as u32;
    if protocol_number == protocol::UDP {
        // An end of its backend ends the flow.
        to.service = epoch::service(service.id);
    }
}

/// Returns whether a packet of the client must choose a backend although its flow has one:
///
/// - a SYN after an answer begins another connection; of a client outside, after the end of one;
/// - so does a SYN when the service has other backends now;
/// - a datagram whose backend no longer serves.
///
/// If the programs no longer serve the service, the packet goes to the stack. If no endpoint of the
/// service can be used any more, datagrams go on to the backend that they have, as with kube-proxy.
/// `clients`: `CLIENTS_*`.
#[inline(never)]
pub fn chooses_again<I: Ip>(packet: &Parsed<I>, half: &Translation, clients: u8) -> bool {
    if packet.is_error || !packet.begins_flow() {
        return false;
    }
    if packet.flow.protocol == protocol::TCP && half.state & STATE_REPLIED != 0 {
        // Anyone can invent a client outside. So there only the end of a connection shows that the
        // next one begins.
        return clients == CLIENTS_INSIDE || nat::is_closed(half.state);
    }
    let Some(service) = at(packet, clients) else {
        return true;
    };
    if half.list == service.list as u32 {
        return false;
    }
    // A flow of TCP has no slot. The address may be another service's now.
    if half.service != epoch::service(service.id) {
        return true;
    }
    service.flags & SERVICE_REFUSES == 0
        && !maps::is_serving(service, &half.destination, half.destination_port)
}

/// Returns the service at the packet's destination. `clients`: `CLIENTS_*`.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn at<I: Ip>(packet: &Parsed<I>, clients: u8) -> Option<&'static Service> {
    let flow = &packet.flow;
    maps::service(&flow.destination, &I::ANY_ADDRESS, flow.destination_port, flow.protocol, clients)
}

/// Returns whether a packet to an address of this node, without a translation, begins a flow to a
/// service. `clients`: `CLIENTS_*`.
// Not inlined: see `at`.
#[inline(never)]
pub fn begins_flow<I: Ip>(packet: &Parsed<I>, clients: u8) -> bool {
    maps::has_services() && packet.begins_flow() && !packet.is_error && at(packet, clients).is_some()
}

/// Returns the translation of an answer to a pod's packet to a service, or `None` if the packet is no
/// such answer.
// Not inlined: its values would take stack in every caller.
#[inline(never)]
pub fn answer<I: Ip>(packet: &Parsed<I>) -> Option<TranslationEntry> {
    // The port tells most packets apart without a lookup: pods choose higher ports for other flows.
    if !maps::has_services() || !nat::may_be_service_port(packet.flow.destination_port.get()) {
        return None;
    }
    of(packet).filter(|entry| entry.get().reply != 0)
}

/// Returns the same for a packet that the host stack sends to a pod. Its flow may lack the ports.
// Not inlined: see `answer`.
#[inline(never)]
pub fn is_answer_of_host<I: Ip>(packet: &mut Parsed<I>) -> bool {
    maps::has_services() && flow::complete(packet).is_ok() && answer(packet).is_some()
}

/// Handles a packet to a pod that the VXLAN device has decapsulated: delivers it, or leaves it to the
/// program for services, or to the host stack.
///
/// # Errors
/// [`Drop::RewriteFailed`].
// Not inlined: see `answer`.
#[inline(never)]
pub fn deliver_or_serve<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>, endpoint: &Endpoint) -> Outcome {
    if answer(packet).is_some() {
        return Ok(Verdict::SERVE);
    }
    if stack_flow::needs_stack(endpoint, packet) {
        return Ok(Verdict::stack(Path::TunnelToStack));
    }
    local::deliver(ctx, &mut packet.headers, endpoint, Path::TunnelInDevice)
}

/// Translates a packet of a service and sends it on: to a pod of this node, to another node, or to
/// this node's own processes. Handles a pod's packet to the world, too.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::FragmentBeforeFirst`], [`Drop::IpsecPolicy`],
/// [`Drop::NoBackend`], [`Drop::NoLocalBackend`], [`Drop::NoRouteBack`],
/// [`Drop::ServicePortUnknown`], [`Drop::ServiceAddressUnknown`], [`Drop::SourceRange`],
/// [`Drop::TunnelTooSmall`], those of [`translation::establish`] and [`snat::from_pod`].
#[inline(always)]
pub fn serve<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    flow::complete(packet)?;
    // Read the generation before the first lookup from which a flow may be learnt.
    packet.generation = maps::generation();
    if let Some(entry) = of(packet) {
        let half = entry.get();
        if half.reply != 0 || !chooses_again(packet, half, CLIENTS_INSIDE) {
            return send(ctx, packet, &entry);
        }
        translation::remove::<I>(&packet.flow, half);
    }
    let endpoint = ends::sending_pod(&packet.headers, &packet.headers.source_address());
    let endpoint = endpoint.ok_or(Drop::BackendGone)?;
    if begin(ctx, packet, endpoint)?
        && let Some(entry) = of(packet)
    {
        return send(ctx, packet, &entry);
    }
    refuse_unknown(packet)?;
    snat::from_pod(ctx, packet, endpoint)
}

/// Refuses a packet to an address of the services' networks at which no service answers. Other packets
/// of a service that the programs serve, such as those of earlier connections, are kube-proxy's.
// Not inlined: the address would take stack in the caller.
#[inline(never)]
fn refuse_unknown<I: Ip>(packet: &Parsed<I>) -> Result<(), Drop> {
    if !maps::has_service_networks() || at(packet, CLIENTS_INSIDE).is_some() {
        return Ok(());
    }
    service_network::refuse_unknown(&packet.headers.destination_address())
}

/// Returns the translation of a packet of a service.
#[inline(always)]
fn of<I: Ip>(packet: &Parsed<I>) -> Option<TranslationEntry> {
    translation::of(packet).filter(|entry| entry.get().kind == TRANSLATION_SERVICE)
}

#[inline(never)]
fn send<I: KnownIp>(ctx: &TcContext, packet: &mut Parsed<I>, entry: &TranslationEntry) -> Outcome {
    if packet.is_overtaken {
        return Err(Drop::FragmentBeforeFirst);
    }
    translation::touch(entry, packet);
    if ctx.served_at() == Hook::ToPod as u32 {
        return from_host(ctx, packet, entry.get());
    }
    if packet.headers.ttl() <= 1 {
        return Ok(Verdict::stack(Path::ToStack));
    }
    match maps::endpoint(&entry.get().destination) {
        Some(endpoint) => deliver(ctx, packet, endpoint, entry),
        None => send_away(ctx, packet, entry),
    }
}

#[inline(never)]
fn deliver<I: KnownIp>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: &Endpoint,
    entry: &TranslationEntry,
) -> Outcome {
    let to = entry.get();
    let path = match ctx.served_at() {
        _ if to.hairpin != 0 => Path::Hairpin,
        hook if hook == Hook::FromPod as u32 => {
            fastpath::learn_service_in(ctx, packet, endpoint, entry);
            Path::Local
        }
        hook if hook == Hook::FromOverlay as u32 => Path::TunnelInDevice,
        _ if maps::is_direct() => Path::DirectIn,
        _ => Path::TunnelIn,
    };
    forward(ctx, packet, to)?;
    local::hand_over(ctx, endpoint, path)
}

/// Translates an answer of this node itself. The stack has sent it to the pod's link already.
#[inline(never)]
fn from_host<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Outcome {
    let endpoint = maps::endpoint(&to.destination).ok_or(Drop::BackendGone)?;
    translate(ctx, packet, to)?;
    local::address_to_pod(ctx, endpoint)?;
    Ok(Verdict::stack(Path::FromStack))
}

/// Sends a pod's packet to a backend on another node, to this node's own process, or into the world.
#[inline(always)]
fn send_away<I: KnownIp>(ctx: &TcContext, packet: &Parsed<I>, entry: &TranslationEntry) -> Outcome {
    let (endpoint, to) = (ends::sending_pod(&packet.headers, &packet.headers.source_address()), entry.get());
    let endpoint = endpoint.ok_or(Drop::BackendGone)?;
    let Some(node) = maps::node(&to.destination) else {
        // A pod of a node that is gone would be looked for in the world.
        if to.ifindex != 0 {
            return Err(Drop::BackendGone);
        }
        translate(ctx, packet, to)?;
        return Ok(Verdict::stack(Path::ToStack));
    };
    match node.flags & (NODE_LOCAL | NODE_ADDRESS | NODE_IPSEC_PODS) {
        0 | NODE_ADDRESS => {}
        // Only the stack would ask the policy, but it accepts no packet that is translated here.
        flags if flags & NODE_IPSEC_PODS != 0 => return Err(Drop::IpsecPolicy),
        flags if flags & NODE_ADDRESS != 0 => {
            translate(ctx, packet, to)?;
            return Ok(Verdict::stack(Path::ToStack));
        }
        _ => return Err(Drop::BackendGone),
    }
    if maps::is_direct() {
        return direct::reply(ctx, packet, Some(endpoint), to, Path::DirectOut);
    }
    tunnel_out::reply(ctx, packet, Some(endpoint), to, Path::TunnelOut, |way, node| {
        fastpath::learn_service_out(ctx, packet, way, node, entry);
    })
}
