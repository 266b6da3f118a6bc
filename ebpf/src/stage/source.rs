//! Checks whether a sender is who it claims to be.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{
        ENDPOINT_EGRESS_LIMITED, Endpoint, FAMILY_IPV4, LINK_SIDE, LINK_UPLINK, Link, Link6, NODE_LOCAL,
        NODE_ON_LINK, NODE_POD_NETWORK, Node,
    },
    addr::{Addr, Mac},
    flow::protocol,
    reason::Drop,
};

use super::ends;
use crate::{
    maps,
    packet::{Faulty, Headers, Ip, Ipv6, Lookup, Parsed, Skb, Way},
};

/// The first byte of 127.0.0.0/8.
const LOOPBACK: u8 = 127;

/// Returns the endpoint that a frame from a pod's link comes from.
///
/// # Errors
/// [`Drop::SourceNotOwned`] when the address is not the pod's, [`Drop::SourceMacNotOwned`] when the
/// link address is not.
#[inline(always)]
pub fn of_pod(ctx: &TcContext, address: &Addr, mac: Mac) -> Result<&'static Endpoint, Drop> {
    check_pod(ctx, maps::endpoint(address), mac)
}

/// Does the same as [`of_pod`] for the source of a packet.
///
/// # Errors
/// Those of [`of_pod`].
#[inline(always)]
pub fn of_headers<I: Ip>(ctx: &TcContext, headers: &Headers<I>) -> Result<&'static Endpoint, Drop> {
    check_pod(ctx, ends::sending_pod(headers, &headers.source_address()), headers.source_mac)
}

#[inline(always)]
fn check_pod(
    ctx: &TcContext,
    endpoint: Option<&'static Endpoint>,
    mac: Mac,
) -> Result<&'static Endpoint, Drop> {
    let endpoint = endpoint.ok_or(Drop::SourceNotOwned)?;
    if endpoint.ifindex != ctx.ifindex() {
        return Err(Drop::SourceNotOwned);
    }
    if endpoint.pod_mac != mac {
        return Err(Drop::SourceMacNotOwned);
    }
    Ok(endpoint)
}

/// Refuses packets that a pod sends faster than its limit. The queue on the pod's side keeps the
/// limit, so only a pod that has bypassed that queue meets this check.
///
/// # Errors
/// [`Drop::EgressLimitExceeded`].
#[inline(always)]
pub fn keep_to_limit(ctx: &TcContext, endpoint: &Endpoint) -> Result<(), Drop> {
    if endpoint.flags & ENDPOINT_EGRESS_LIMITED == 0 || maps::may_send(ctx.ifindex(), bytes_of_frames(ctx)) {
        return Ok(());
    }
    Err(Drop::EgressLimitExceeded)
}

/// Returns the reason to refuse a pod's packet that cannot be parsed. A false sender is reported
/// before a fault.
#[inline(never)]
pub fn of_faulty<I: Ip>(ctx: &TcContext, faulty: &Faulty<'_, I>) -> Drop {
    match of_headers(ctx, faulty.headers).and_then(|endpoint| keep_to_limit(ctx, endpoint)) {
        Ok(()) => faulty.reason,
        Err(reason) => reason,
    }
}

/// Returns the bytes of all frames that a large segment becomes, as the queue on the pod's side
/// counts them, or a little less.
#[inline(always)]
fn bytes_of_frames(ctx: &TcContext) -> u32 {
    // Ethernet, IPv4, and UDP or TCP with timestamps.
    const LEAST_HEADERS: u32 = 14 + 20 + 8;
    const HEADERS: u32 = 14 + 20 + 32;
    let (bytes, payload) = (ctx.bytes(), ctx.segment_payload());
    if payload == 0 {
        return bytes;
    }
    bytes + (bytes.saturating_sub(HEADERS) / payload).saturating_sub(1) * LEAST_HEADERS
}

/// Returns whether a packet looks like a tunnel packet, wherever it goes.
#[inline(always)]
pub fn is_tunnel<I: Ip>(packet: &Parsed<I>) -> bool {
    packet.flow.protocol == protocol::UDP
        && packet.flow.destination_port == maps::vxlan_port()
        && !packet.is_error
}

/// Returns whether other nodes send their tunnel packets to this address, and the packet came by an
/// uplink. Links of other kinds have no tunnel address.
#[inline(always)]
pub fn is_tunnel_address<I: Ip>(ctx: &TcContext, address: &Addr) -> bool {
    match I::FAMILY {
        FAMILY_IPV4 => maps::link(ctx.ifindex()).is_some_and(|link| link.tunnel_address == *address),
        // A link without a tunnel address has `::` in its place.
        _ => {
            let is_of = |link: &Link6| link.tunnel_address == *address && *address != Addr::UNSPECIFIED;
            maps::link6(ctx.ifindex()).is_some_and(is_of)
        }
    }
}

/// Refuses tunnel packets that a pod made itself and sends to a node, even to this one. The node
/// would take them for another node's.
///
/// # Errors
/// [`Drop::VxlanFromPod`].
#[inline(always)]
pub fn refuse_tunnel_from_pod<I: Ip>(packet: &Parsed<I>, node: &Node) -> Result<(), Drop> {
    if is_tunnel(packet) && node.flags & NODE_POD_NETWORK == 0 {
        return Err(Drop::VxlanFromPod);
    }
    Ok(())
}

/// Refuses packets that a rule of the host has rewritten into tunnel packets. They have this node's
/// address as their source, so the other nodes would take them for this node's. The tunnel's own
/// packets, and packets of this node's sockets, came by no link: they pass.
///
/// # Errors
/// [`Drop::VxlanFromPod`].
#[inline(always)]
pub fn refuse_forwarded_tunnel<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> Result<(), Drop> {
    let came_by = ctx.ingress_ifindex();
    if maps::is_direct() || came_by == 0 || !is_tunnel(packet) {
        return Ok(());
    }
    // Packets that this node only routes between others keep their addresses.
    let is_routed = |link: &Link| matches!(link.kind, LINK_UPLINK | LINK_SIDE);
    if maps::link(came_by).is_some_and(is_routed) && !maps::is_own_address(&packet.headers.source_address()) {
        return Ok(());
    }
    Err(Drop::VxlanFromPod)
}

/// Refuses loopback addresses. The kernel lets them in if `route_localnet` is set.
///
/// # Errors
/// [`Drop::LoopbackAddress`].
#[inline(always)]
pub fn refuse_loopback(headers: &Headers) -> Result<(), Drop> {
    if headers.ip.source[0] == LOOPBACK || headers.ip.destination[0] == LOOPBACK {
        return Err(Drop::LoopbackAddress);
    }
    Ok(())
}

/// Refuses IPv6 addresses that a packet on a wire never has, and link-local ones, which no program
/// forwards.
///
/// # Errors
/// [`Drop::AddressNeverOnWire`], [`Drop::LinkLocalAddress`].
// Not inlined: the addresses would take stack in the caller.
#[inline(never)]
pub fn refuse_unroutable(headers: &Headers<Ipv6>) -> Result<(), Drop> {
    let (source, destination) = (headers.source_address(), headers.destination_address());
    if source.is_never_on_a_wire() || source.is_multicast() || destination.is_never_on_a_wire() {
        return Err(Drop::AddressNeverOnWire);
    }
    if source.is_link_local() || destination.is_link_local() {
        return Err(Drop::LinkLocalAddress);
    }
    Ok(())
}

/// Refuses IPv6 packets with v4-mapped addresses: the tables would take them for IPv4's.
///
/// # Errors
/// [`Drop::AddressNeverOnWire`].
// Not inlined: the addresses would take stack in the caller.
#[inline(never)]
pub fn refuse_mapped(headers: &Headers<Ipv6>) -> Result<(), Drop> {
    if headers.source_address().is_v4() || headers.destination_address().is_v4() {
        return Err(Drop::AddressNeverOnWire);
    }
    Ok(())
}

/// Refuses a pod's source address in a frame to a group: no node forwards a pod's packet in such a
/// frame.
///
/// # Errors
/// [`Drop::PodSourceNotFromNode`].
#[inline(always)]
pub fn of_group_frame<I: Ip>(headers: &Headers<I>) -> Result<(), Drop> {
    match maps::node(&headers.source_address()) {
        Some(node) if node.flags & NODE_POD_NETWORK != 0 => Err(Drop::PodSourceNotFromNode),
        _ => Ok(()),
    }
}

/// Does the same as [`of_bare_packet`] for a packet that cannot be parsed.
///
/// # Errors
/// [`Drop::PodSourceNotFromNode`].
#[inline(never)]
pub fn of_bare_faulty<I: Ip>(ctx: &TcContext, faulty: &Faulty<'_, I>) -> Result<(), Drop> {
    match maps::node(&faulty.headers.source_address()) {
        Some(node) => of_bare_packet(ctx, faulty.headers, node),
        None => Ok(()),
    }
}

/// Refuses a pod's source address that arrives unencapsulated on an uplink. It may arrive only with
/// direct routing, by its node's link, and with `--link-addresses checked` only from its node's
/// link address.
///
/// # Errors
/// [`Drop::PodSourceNotFromNode`].
#[inline(never)]
pub fn of_bare_packet<I: Ip>(ctx: &TcContext, headers: &Headers<I>, node: &Node) -> Result<(), Drop> {
    if node.flags & NODE_POD_NETWORK == 0 {
        return Ok(());
    }
    if !maps::is_direct() || node.flags & NODE_LOCAL != 0 || node.uplink != ctx.ifindex() {
        return Err(Drop::PodSourceNotFromNode);
    }
    if node.flags & NODE_ON_LINK == 0 || !maps::checks_link_addresses() {
        return Ok(());
    }
    // The kernel's own neighbour entry shows which node the frame comes from; the programs keep no
    // such table. If the kernel has no entry yet, the packet passes: a refusal would cut off a node
    // that never had to ask for this node's link address.
    let mut way = Way::new(node.uplink, node.source, node.tunnel_endpoint, 0);
    let known = way.look_up::<I>(ctx) == Lookup::Found && way.next_hop_mac != Mac::default();
    if known && way.next_hop_mac != headers.source_mac {
        return Err(Drop::PodSourceNotFromNode);
    }
    Ok(())
}
