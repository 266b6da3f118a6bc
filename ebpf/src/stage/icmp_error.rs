//! ICMP errors: who may say what about which packet.
//!
//! Whoever believes an error ends a connection, or sends smaller packets (RFC 5927). Only the quoted packet says which
//! flow it is about, so the quote has to fit the error's sender and receiver.

use aya_ebpf::programs::TcContext;
use podwire_common::{epoch, flow::protocol, reason::Drop};

use crate::{
    maps,
    packet::{Parsed, Skb},
};

/// Refuses a pod's error, unless the quoted packet was sent to that pod, and the error goes to that packet's sender.
///
/// A pod that forwards needs no more: packets for other addresses never reach a pod, so it translates, and quotes its
/// own address.
///
/// # Errors
/// [`Drop::IcmpErrorNotOwned`].
#[inline(always)]
pub fn check_from_pod(packet: &Parsed) -> Result<(), Drop> {
    let is_receiver = packet.headers.source == packet.flow.source.v4();
    if packet.is_error && !(is_receiver && goes_to_sender(packet)) {
        return Err(Drop::IcmpErrorNotOwned);
    }
    Ok(())
}

/// Whether an error goes to the sender of the quoted packet. Any router may send it; connection tracking asks for the
/// same (`nf_conntrack_inet_error` in the kernel).
#[inline(always)]
pub fn goes_to_sender(packet: &Parsed) -> bool {
    packet.headers.destination == packet.flow.destination.v4()
}

/// Forgets what is known of the flow that an error from the network quotes, or of the flows with the node that the
/// quoted tunnel packet went to: the path may take less now. Nothing else is forgotten, so errors about packets that
/// this node has not sent change nothing.
///
/// Errors that pods and other nodes' pods send do not come here: they tell nothing of a path that was asked for.
#[inline(never)]
pub fn forget(ctx: &TcContext, packet: &Parsed) {
    if !goes_to_sender(packet) {
        return;
    }
    if is_about_tunnel(ctx, packet) {
        return maps::forget_flows_of(epoch::node(&packet.flow.source));
    }
    match maps::translation(&packet.flow) {
        // What was sent is the translated flow; the pod's own is what is known.
        Some(entry) => maps::forget_flow(&entry.get().other_half(packet.flow.protocol)),
        None => maps::forget_reverse(&packet.flow),
    }
}

/// Whether an error is about a tunnel packet of this node.
#[inline(always)]
fn is_about_tunnel(ctx: &TcContext, packet: &Parsed) -> bool {
    packet.flow.protocol == protocol::UDP
        && packet.flow.source_port == maps::vxlan_port()
        && !maps::is_direct()
        && maps::link(ctx.ifindex()).is_some_and(|link| link.tunnel_address == packet.flow.destination)
        && maps::is_tunnel_peer(&packet.flow.source)
}
