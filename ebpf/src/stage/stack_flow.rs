//! Path symmetry: the replies of a flow that came out of the host stack return through it
//! (invariant 1).

use core::convert::Infallible;

use podwire_common::{
    abi::{ENDPOINT_STACK_ONLY, Endpoint, FAMILY_IPV4},
    addr::Addr,
    flow::{can_go_direct, protocol},
    reason::Path,
};

use super::icmp_error;
use crate::{
    maps,
    packet::{Fragment, Ip, Parsed},
};

/// Returns whether a packet from or to a pod must go through the host stack, because its flow or
/// the reverse flow was recorded. The reverse flow was recorded if a client has reached a backend
/// through a service and now reaches it directly from the same port. The answers take the stack, so
/// the client's packets must take it too. There conntrack keeps the two flows apart.
#[inline(never)]
pub fn needs_stack<I: Ip>(endpoint: &Endpoint, packet: &Parsed<I>) -> bool {
    if endpoint.flags & ENDPOINT_STACK_ONLY != 0 || maps::is_stack_flow(&packet.flow) {
        return true;
    }
    // For TCP the first packet decides. The lookup above finds the later ones.
    let is_tcp = packet.flow.protocol == protocol::TCP;
    if packet.is_error || (is_tcp && !packet.begins_connection()) {
        return false;
    }
    if !maps::is_stack_flow(&packet.flow.reversed()) {
        return false;
    }
    if is_tcp && maps::record_stack_flow::<I::FlowAddr>(&packet.flow, &packet.flow.source).is_err() {
        maps::count_path(Path::StackFlowsFull, 0);
    }
    true
}

/// Records, for a packet that came out of the host stack, that its replies must go back through it.
///
/// `local_pod` is the end on this node, `other` the far one. Nothing is recorded if replies could
/// not bypass the stack: to this node itself or to the world they take it anyway. ICMP errors
/// record nothing: they follow the flow that they quote.
#[inline(never)]
pub fn record<I: Ip>(packet: &Parsed<I>, local_pod: &Addr, other: &Addr) {
    if packet.is_error || matches!(packet.fragment_part(), Fragment::Later) || !leads_past_stack(other) {
        return;
    }
    if maps::record_stack_flow::<I::FlowAddr>(&packet.flow.reversed(), local_pod).is_err() {
        // All flows of the pod are slower now, but never wrong.
        maps::set_stack_only(local_pod);
        maps::count_path(Path::StackFlowsFull, 0);
    }
}

/// Does the same as [`record`] for a packet from a pod here to another node. `source` and
/// `destination`: the packet's.
#[inline(always)]
pub fn record_from_pod<I: Ip>(packet: &Parsed<I>, source: &Addr, destination: &Addr) {
    if I::FAMILY == FAMILY_IPV4 { record(packet, source, destination) } else { record_apart(packet) }
}

// Not inlined: the addresses would take stack beside the packet.
#[inline(never)]
fn record_apart<I: Ip>(packet: &Parsed<I>) {
    record(packet, &packet.headers.source_address(), &packet.headers.destination_address());
}

/// Returns whether the packet is an ICMP error about a packet that its receiver has sent to an
/// address reached past the stack.
#[inline(never)]
pub fn is_error_about_direct<I: Ip>(packet: &Parsed<I>) -> bool {
    packet.is_error && icmp_error::goes_to_sender(packet) && leads_past_stack(&packet.flow.source)
}

#[inline(always)]
fn leads_past_stack(other: &Addr) -> bool {
    let node_flags = || Ok::<_, Infallible>(maps::node(other).map(|node| node.flags));
    let Ok(can) = can_go_direct(maps::endpoint(other).is_some(), node_flags);
    can
}
