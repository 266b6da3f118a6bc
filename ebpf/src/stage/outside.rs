//! Services for clients outside: the world, and pods and processes of other nodes. A backend on this
//! node sees the client's address. A backend elsewhere sees an address of this node, so that its
//! answers come back here.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        CLIENTS_OUTSIDE, Endpoint, FAMILY_IPV4, LINK_INNER, NODE_ADDRESS, NODE_LOCAL, TRANSLATION_OUTSIDE,
        TRANSLATION_RELAY, Translation,
    },
    addr::Addr,
    nat,
    reason::{Drop, Hook, Path},
};

use super::{direct, flow, local, service, translation, tunnel_out};
use crate::{
    maps::{self, TranslationEntry},
    packet::{Ip, Lookup, Parsed, Skb, Way, translate},
    verdict::{Outcome, Verdict},
};

/// Translates a packet of a client outside to a service, or the answer to one, and sends it on. A
/// packet that the programs do not serve goes to the host stack.
///
/// # Errors
/// [`Drop::BackendGone`], [`Drop::NoRouteBack`], [`Drop::RewriteFailed`], [`Drop::TunnelTooSmall`],
/// [`Drop::VxlanFromPod`], those of [`service::refuse`] and [`translation::establish`].
#[inline(always)]
pub fn serve<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>) -> Outcome {
    flow::complete(packet)?;
    if let Some(entry) = of(packet) {
        let half = entry.get();
        if half.reply != 0 || !service::chooses_again(packet, half, CLIENTS_OUTSIDE) {
            return send(ctx, packet, &entry);
        }
        translation::remove::<I>(&packet.flow, half);
    }
    if begin(ctx, packet)?
        && let Some(entry) = of(packet)
    {
        return send(ctx, packet, &entry);
    }
    Ok(to_stack(ctx))
}

/// Returns whether a translation is of a client outside.
#[inline(always)]
pub fn is_of(half: &Translation) -> bool {
    matches!(half.kind, TRANSLATION_OUTSIDE | TRANSLATION_RELAY)
}

/// Returns whether a packet is a later one of a client's TCP connection, and came by the link by which
/// the connection began. Then its source was checked when the connection began. With
/// `--link-addresses checked`, each packet is checked.
#[inline(always)]
pub fn is_under_way<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, half: &Translation) -> bool {
    I::FAMILY == FAMILY_IPV4
        && is_of(half)
        && half.reply == 0
        && half.ifindex == ctx.ifindex()
        && !packet.begins_flow()
        && !maps::checks_link_addresses()
}

/// Delivers such a packet to a pod of this node, or leaves it to the program for clients outside. The
/// packet is whole.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn go_on<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, entry: &TranslationEntry) -> Outcome {
    let Some(endpoint) = receiver(entry.get()) else {
        return Ok(Verdict::OUTSIDE);
    };
    translation::touch(entry, packet);
    deliver(ctx, packet, endpoint, entry.get())
}

/// Returns whether a packet out of the tunnel is the answer to a client's packet that this node has
/// relayed. It is whole. Only the programs for IPv4 take it out of the tunnel.
// Not inlined: its values would take stack in the caller.
#[inline(never)]
pub fn is_relayed_answer<I: Ip>(packet: &Parsed<I>) -> bool {
    // The port tells most packets apart without a lookup.
    I::FAMILY == FAMILY_IPV4
        && maps::has_services()
        && nat::may_be_service_port(packet.flow.destination_port.get())
        && packet.is_whole()
        && of(packet).is_some_and(|entry| entry.get().reply != 0)
}

/// Leaves a packet with such a translation to the program for clients outside.
///
/// # Errors
/// [`Drop::FragmentBeforeFirst`]: that program cannot see it, because it completes the flow anew.
#[inline(always)]
pub fn claim<I: Ip>(packet: &Parsed<I>) -> Outcome {
    if packet.is_overtaken { Err(Drop::FragmentBeforeFirst) } else { Ok(Verdict::OUTSIDE) }
}

/// Returns the translation of a packet of a client outside or of an answer to one.
#[inline(always)]
fn of<I: Ip>(packet: &Parsed<I>) -> Option<TranslationEntry> {
    translation::of(packet).filter(|entry| is_of(entry.get()))
}

/// Begins the translation of a client's packet to a service. Returns `false` for all other packets.
///
/// # Errors
/// Those of [`service::refuse`] and [`translation::establish`].
#[inline(never)]
fn begin<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> Result<bool, Drop> {
    let flow = &packet.flow;
    if !packet.begins_flow() || packet.is_error || packet.is_authenticated() || !may_ask::<I>(&flow.source) {
        return Ok(false);
    }
    let Some(service) = service::at(packet, CLIENTS_OUTSIDE) else {
        return Ok(false);
    };
    service::refuse(service, &flow.source)?;
    let Some(backend) = maps::backend_for(service, &flow.source) else {
        return Ok(false);
    };
    let mut to = translation::begin(TRANSLATION_OUTSIDE, ctx.ifindex(), flow);
    service::lead_to(&mut to, flow.protocol, service, backend);
    if maps::endpoint(&backend.address).is_none() && !lead_elsewhere::<I>(ctx, &mut to) {
        return Ok(false);
    }
    translation::establish::<I>(ctx, flow, &mut to)?;
    Ok(true)
}

/// Returns whether a client with this address can get an answer. `::` and groups never send.
#[inline(always)]
fn may_ask<I: Ip>(client: &Addr) -> bool {
    I::FAMILY == FAMILY_IPV4
        || !(client.is_link_local() || client.is_multicast() || *client == Addr::UNSPECIFIED)
}

/// Completes a translation to a backend that is no pod of this node. Returns `false` if only
/// kube-proxy can serve it.
// Not inlined: the keys would take stack in the caller.
#[inline(never)]
fn lead_elsewhere<I: Ip>(ctx: &TcContext, to: &mut Translation) -> bool {
    let node = maps::node(&to.destination);
    if node.is_some_and(|node| node.flags & NODE_LOCAL != 0) {
        // A process of this node sees the client's address, as pods here do. On a link of containers
        // and virtual machines, no program would translate its answer.
        return maps::link(to.ifindex).is_none_or(|link| link.kind != LINK_INNER);
    }
    to.kind = TRANSLATION_RELAY;
    to.past_stack = node.is_none().into();
    let uplink = node.map_or_else(|| link_towards::<I>(ctx, &to.destination), |node| node.uplink);
    let internal_ip = match I::FAMILY {
        FAMILY_IPV4 => maps::link(uplink).map(|link| link.tunnel_address),
        _ => maps::link6(uplink).map(|link| link.tunnel_address),
    };
    // The other nodes' policies know this address as this node's.
    to.source = internal_ip.unwrap_or(Addr::UNSPECIFIED);
    to.source != Addr::UNSPECIFIED
}

#[inline(never)]
fn send<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, entry: &TranslationEntry) -> Outcome {
    translation::touch(entry, packet);
    let to = entry.get();
    if let Some(endpoint) = receiver(to) {
        return deliver(ctx, packet, endpoint, to);
    }
    // Also when two services of two nodes lead to each other, the packet comes to an end.
    if packet.headers.ttl() <= 1 {
        return Ok(to_stack(ctx));
    }
    if to.reply == 0 { relay(ctx, packet, to) } else { answer(ctx, packet, to) }
}

/// Returns the pod of this node to which a translation leads. A relayed flow never leads to one.
#[inline(always)]
fn receiver(to: &Translation) -> Option<&'static Endpoint> {
    if to.kind == TRANSLATION_RELAY { None } else { maps::endpoint(&to.destination) }
}

/// Delivers a client's packet to a pod of this node.
#[inline(always)]
fn deliver<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, endpoint: &Endpoint, to: &Translation) -> Outcome {
    // The client takes the service's address for the pod's, so it must see no hop between them.
    translate(ctx, packet, to)?;
    local::hand_over(ctx, endpoint, Path::ServiceIn)
}

/// Sends a client's packet to a backend that is no pod of this node.
#[inline(always)]
fn relay<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Outcome {
    let Some(node) = maps::node(&to.destination) else {
        // A pod of a node that is gone would be looked for in the world.
        if to.past_stack == 0 {
            return Err(Drop::BackendGone);
        }
        let uplink = link_towards::<I>(ctx, &to.destination);
        return relay_without_tunnel(ctx, packet, to, uplink);
    };
    match node.flags & (NODE_LOCAL | NODE_ADDRESS) {
        0 if !maps::is_direct() => tunnel_out::reply(ctx, packet, None, to, Path::RelayOut, |_, _| {}),
        // Processes of other nodes are reached without the tunnel, from this node's own address.
        0 | NODE_ADDRESS => relay_without_tunnel(ctx, packet, to, node.uplink),
        flags if flags & NODE_ADDRESS != 0 => {
            translate(ctx, packet, to)?;
            Ok(Verdict::stack(Path::ServiceIn))
        }
        _ => Err(Drop::BackendGone),
    }
}

/// Returns the link by which the host's routes lead to a backend outside the cluster. It may be
/// another link than the client's. Returns 0 if there is no route.
#[inline(never)]
fn link_towards<I: Ip>(ctx: &TcContext, backend: &Addr) -> u32 {
    // For a packet of one byte, which no link is too small for.
    let mut way = Way::new(ctx.ifindex(), Addr::UNSPECIFIED, *backend, 1);
    match way.look_up_any::<I>(ctx) {
        Lookup::Found => way.ifindex,
        _ => 0,
    }
}

// Not inlined: the second translation would take stack beside the tunnel.
#[inline(never)]
fn relay_without_tunnel<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    to: &Translation,
    uplink: u32,
) -> Outcome {
    direct::reply(ctx, packet, None, &Translation { ifindex: uplink, ..*to }, Path::RelayOut)
}

/// Sends an answer from another node to the client, the way that its packet came.
#[inline(always)]
fn answer<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, to: &Translation) -> Outcome {
    if to.ifindex == maps::vxlan_ifindex() {
        return tunnel_out::reply(ctx, packet, None, to, Path::RelayIn, |_, _| {});
    }
    direct::reply(ctx, packet, None, to, Path::RelayIn)
}

/// Translates the answer of a process of this node to a client behind the tunnel. All other packets
/// stay as they are.
///
/// # Errors
/// [`Drop::RewriteFailed`].
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn answer_of_process<I: Ip>(ctx: &TcContext, packet: &mut Parsed<I>) -> Result<(), Drop> {
    if !maps::has_services() || flow::complete(packet).is_err() {
        return Ok(());
    }
    match of(packet) {
        Some(entry) if entry.get().reply != 0 => {
            translation::touch(&entry, packet);
            translate(ctx, packet, entry.get())
        }
        _ => Ok(()),
    }
}

/// Returns the verdict for a packet that the programs do not serve.
#[inline(always)]
fn to_stack(ctx: &TcContext) -> Verdict {
    match ctx.served_at() {
        hook if hook == Hook::FromOverlay as u32 => Verdict::stack(Path::TunnelToStack),
        _ => Verdict::PASS,
    }
}
