//! Delivery to a pod of this node, past the host stack.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{ENDPOINT_INGRESS_LIMITED, Endpoint, Macs},
    reason::{Drop, Path},
};

use crate::{
    packet::{Headers, Skb, redirect, redirect_peer, set_macs},
    verdict::{Outcome, Verdict},
};

/// Of a frame's header.
const ETHERNET_LENGTH: u32 = 14;

/// Hands a frame, whose time to live has been seen to be above 1, to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn deliver(ctx: &TcContext, headers: &mut Headers, endpoint: &Endpoint, path: Path) -> Outcome {
    pass_on(ctx, headers, endpoint.macs())?;
    Ok(Verdict::redirect(path, into_endpoint(ctx, endpoint)))
}

/// As [`deliver`], by a link and the pod's and the gateway's link addresses: to a pod without a limit.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn send(ctx: &TcContext, headers: &mut Headers, macs: Macs, link: u32, path: Path) -> Outcome {
    pass_on(ctx, headers, macs)?;
    Ok(Verdict::redirect(path, into(ctx, link)))
}

/// Writes the hop of a frame that goes into a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn pass_on(ctx: &TcContext, headers: &mut Headers, macs: Macs) -> Result<(), Drop> {
    headers.decrement_ttl();
    headers.set_macs(macs);
    ctx.store_at(0, headers)
}

/// As [`deliver`], for a frame whose time to live has been taken care of.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn hand_over(ctx: &TcContext, endpoint: &Endpoint, path: Path) -> Outcome {
    address_to_pod(ctx, endpoint)?;
    Ok(Verdict::redirect(path, into_endpoint(ctx, endpoint)))
}

/// Sends a finished frame into a pod: through the queue of its link where that limits what the pod receives, else past it.
#[inline(always)]
pub fn into_endpoint(ctx: &TcContext, endpoint: &Endpoint) -> i32 {
    if endpoint.flags & ENDPOINT_INGRESS_LIMITED == 0 {
        return into(ctx, endpoint.ifindex);
    }
    // Behind the queue the link drops what is larger than its MTU, and tells nobody. A datagram to a hostPort may be: the world's MTU is not
    // the pods'.
    if ctx.bytes() > endpoint.mtu + ETHERNET_LENGTH && ctx.segment_payload() == 0 {
        return into(ctx, endpoint.ifindex);
    }
    // Nobody takes it for the stack's: replies may go as this packet has come.
    ctx.set_ready_to_leave();
    redirect(endpoint.ifindex)
}

/// Sends a finished frame through a link into the pod, past its queue.
#[inline(always)]
pub fn into(ctx: &TcContext, link: u32) -> i32 {
    // By itself the kernel does this from 6.15 only.
    if !ctx.is_for_this_host() {
        ctx.set_packet_host();
    }
    redirect_peer(link)
}

/// Sets the link addresses of a frame that goes to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn address_to_pod(ctx: &TcContext, endpoint: &Endpoint) -> Result<(), Drop> {
    set_macs(ctx, endpoint.macs())
}
