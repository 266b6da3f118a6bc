//! Delivery to a pod of this node, past the host stack.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Endpoint, Macs},
    reason::{Drop, Path},
};

use crate::{
    packet::{Headers, Skb, redirect_peer, set_macs},
    verdict::{Outcome, Verdict},
};

/// Hands a frame, whose time to live has been seen to be above 1, to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn deliver(ctx: &TcContext, headers: &mut Headers, endpoint: &Endpoint, path: Path) -> Outcome {
    send(ctx, headers, endpoint.macs(), endpoint.ifindex, path)
}

/// As [`deliver`], by a link and the pod's and the gateway's link addresses.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn send(ctx: &TcContext, headers: &mut Headers, macs: Macs, link: u32, path: Path) -> Outcome {
    headers.decrement_ttl();
    headers.set_macs(macs);
    ctx.store_at(0, headers)?;
    Ok(Verdict::redirect(path, into(ctx, link)))
}

/// As [`deliver`], for a frame whose time to live has been taken care of.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn hand_over(ctx: &TcContext, endpoint: &Endpoint, path: Path) -> Outcome {
    address_to_pod(ctx, endpoint)?;
    Ok(Verdict::redirect(path, into(ctx, endpoint.ifindex)))
}

/// Sends a finished frame through a link into the pod.
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
