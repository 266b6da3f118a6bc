//! Delivery to a pod of this node, past the host stack.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{ENDPOINT_INGRESS_LIMITED, Endpoint, FAMILY_IPV4, Macs},
    reason::{Drop, Path},
};

use crate::{
    packet::{ETHERNET_LENGTH, Headers, Ip, Skb, redirect, redirect_peer, set_macs, store_in_parts},
    verdict::{Outcome, Verdict},
};

/// Delivers a frame to a pod, and decrements its TTL. The caller has checked that it is above 1.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn deliver<I: Ip>(ctx: &TcContext, headers: &mut Headers<I>, endpoint: &Endpoint, path: Path) -> Outcome {
    pass_on(ctx, headers, endpoint.macs())?;
    Ok(Verdict::redirect(path, into_endpoint(ctx, endpoint)))
}

/// Does the same as [`deliver`] for a pod without an ingress limit. `link`: the host side of its
/// veth pair. `macs`: the pod's and the gateway's link addresses.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn send<I: Ip>(ctx: &TcContext, headers: &mut Headers<I>, macs: Macs, link: u32, path: Path) -> Outcome {
    pass_on(ctx, headers, macs)?;
    Ok(Verdict::redirect(path, into(ctx, link)))
}

/// Decrements the TTL and writes the link addresses of a frame that goes to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn pass_on<I: Ip>(ctx: &TcContext, headers: &mut Headers<I>, macs: Macs) -> Result<(), Drop> {
    headers.ip.decrement_ttl();
    headers.set_macs(macs);
    if I::FAMILY == FAMILY_IPV4 { ctx.store_at(0, headers) } else { store_in_parts(ctx, headers) }
}

/// Does the same as [`deliver`], but leaves the TTL as it is.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn hand_over(ctx: &TcContext, endpoint: &Endpoint, path: Path) -> Outcome {
    address_to_pod(ctx, endpoint)?;
    Ok(Verdict::redirect(path, into_endpoint(ctx, endpoint)))
}

/// Sends a finished frame to a pod: through the queue of its link if the pod has an ingress limit,
/// otherwise past the queue.
#[inline(always)]
pub fn into_endpoint(ctx: &TcContext, endpoint: &Endpoint) -> i32 {
    if endpoint.flags & ENDPOINT_INGRESS_LIMITED == 0 {
        return into(ctx, endpoint.ifindex);
    }
    // Behind the queue, the link silently drops frames larger than its MTU. A datagram to a
    // hostPort may be larger, because the world's MTU is not the pods'. Such a frame goes past the
    // queue.
    if ctx.bytes() > endpoint.mtu + ETHERNET_LENGTH && ctx.segment_payload() == 0 {
        return into(ctx, endpoint.ifindex);
    }
    // With the mark, `to_pod` does not take the frame for one from the stack: replies may go past
    // the stack as well.
    ctx.set_ready_to_leave();
    redirect(endpoint.ifindex)
}

/// Sends a finished frame through a link into the pod, past its queue.
#[inline(always)]
pub fn into(ctx: &TcContext, link: u32) -> i32 {
    // Before Linux 6.15 the kernel does not do this by itself.
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
