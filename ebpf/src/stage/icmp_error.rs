//! ICMP errors: which sender may send an error about which packet.
//!
//! A host that believes an error ends a connection, or sends smaller packets (RFC 5927). Only the
//! quoted packet says which flow the error is about. So the quote must fit the error's sender and
//! receiver.

use aya_ebpf::programs::TcContext;
use podwire_common::{epoch, flow::protocol, reason::Drop};

use super::source;
use crate::{
    maps,
    packet::{Ip, Parsed},
};

/// Refuses a pod's error, unless the quoted packet was sent to that pod, and the error goes to the
/// quoted packet's sender.
///
/// A pod that forwards needs no exception. Packets for other addresses never reach a pod, so such a
/// pod translates, and quotes its own address.
///
/// # Errors
/// [`Drop::IcmpErrorNotOwned`].
#[inline(always)]
pub fn check_from_pod<I: Ip>(packet: &Parsed<I>) -> Result<(), Drop> {
    let is_receiver = packet.headers.ip.is_from(&packet.flow.source);
    if packet.is_error && !(is_receiver && goes_to_sender(packet)) {
        return Err(Drop::IcmpErrorNotOwned);
    }
    Ok(())
}

/// Returns whether an error goes to the sender of the quoted packet. Any router may send such an
/// error. Conntrack requires the same (`nf_conntrack_inet_error` in the kernel).
#[inline(always)]
pub fn goes_to_sender<I: Ip>(packet: &Parsed<I>) -> bool {
    packet.headers.ip.is_to(&packet.flow.destination)
}

/// Forgets what is known of the flow that an error from the network quotes, because the path may
/// take only smaller packets now. If the error quotes a tunnel packet, the function forgets all
/// flows with the node to which that packet went. Nothing else is forgotten, so errors about
/// packets that this node has not sent change nothing.
///
/// Errors from this node's pods, and errors in the tunnel, do not come here: they say nothing of a
/// path that the programs have looked up.
#[inline(never)]
pub fn forget<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) {
    if !goes_to_sender(packet) {
        return;
    }
    if is_about_tunnel(ctx, packet) {
        return maps::forget_flows_of(epoch::node(&packet.flow.source));
    }
    match maps::translation(&packet.flow) {
        // The node sent the translated flow, but the known flow is the pod's own.
        Some(entry) => maps::forget_flow::<I::FlowAddr>(&entry.get().other_half(packet.flow.protocol)),
        None => maps::forget_reverse::<I::FlowAddr>(&packet.flow),
    }
}

/// Returns whether an error is about a tunnel packet of this node.
#[inline(always)]
fn is_about_tunnel<I: Ip>(ctx: &TcContext, packet: &Parsed<I>) -> bool {
    packet.flow.protocol == protocol::UDP
        && packet.flow.source_port == maps::vxlan_port()
        && !maps::is_direct()
        && source::is_tunnel_address::<I>(ctx, &packet.flow.destination)
        && maps::is_tunnel_peer(&packet.flow.source)
}
