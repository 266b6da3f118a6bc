//! Path symmetry: a flow that came to us out of the host stack returns through it (invariant 1).

use core::convert::Infallible;

use podwire_common::{
    abi::{ENDPOINT_STACK_ONLY, Endpoint},
    addr::Addr,
    flow::{can_go_direct, protocol},
    reason::Path,
};

use super::icmp_error;
use crate::{
    maps,
    packet::{Fragment, Parsed},
};

/// Whether a packet between a pod and somebody else must go through the host stack: its own flow was recorded, or its
/// reverse. The latter is a client that has reached a backend through a service and now reaches it directly from the same
/// port: its answers take the stack, so it must as well, where connection tracking keeps the two apart.
#[inline(never)]
pub fn needs_stack(endpoint: &Endpoint, packet: &Parsed) -> bool {
    if endpoint.flags & ENDPOINT_STACK_ONLY != 0 || maps::is_stack_flow(&packet.flow) {
        return true;
    }
    // Of TCP the first packet decides, and the rest is found by the lookup above.
    let is_tcp = packet.flow.protocol == protocol::TCP;
    if packet.is_error || (is_tcp && !packet.begins_connection()) {
        return false;
    }
    if !maps::is_stack_flow(&packet.flow.reversed()) {
        return false;
    }
    if is_tcp && maps::record_stack_flow(&packet.flow, &packet.flow.source).is_err() {
        maps::count_path(Path::StackFlowsFull, 0);
    }
    true
}

/// Records, for a packet that came out of the host stack, that its replies must go back through it.
///
/// `local_pod` is the end on this node, `other` the far one. Nothing is recorded where replies could not go past the stack:
/// towards this node itself or the world they go up anyway. ICMP errors mark nothing: they follow the flow they speak of.
#[inline(never)]
pub fn record(packet: &Parsed, local_pod: &Addr, other: &Addr) {
    if packet.is_error
        || matches!(packet.headers.fragment_part(), Fragment::Later)
        || !leads_past_stack(other)
    {
        return;
    }
    if maps::record_stack_flow(&packet.flow.reversed(), local_pod).is_err() {
        // Slower, never wrong.
        maps::set_stack_only(local_pod);
        maps::count_path(Path::StackFlowsFull, 0);
    }
}

/// Whether it is an ICMP error about what its receiver has sent to somebody whom packets reach past the stack.
#[inline(never)]
pub fn is_error_about_direct(packet: &Parsed) -> bool {
    packet.is_error && icmp_error::goes_to_sender(packet) && leads_past_stack(&packet.flow.source)
}

#[inline(always)]
fn leads_past_stack(other: &Addr) -> bool {
    let node_flags = || Ok::<_, Infallible>(maps::node(other).map(|node| node.flags));
    let Ok(can) = can_go_direct(maps::endpoint(other).is_some(), node_flags);
    can
}
