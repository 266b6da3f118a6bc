//! Delivery to a pod of this node, past the host stack.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::Endpoint,
    reason::{Drop, Path},
};

use crate::{
    packet::{Headers, Skb, decrement_ttl, redirect_peer, set_macs},
    verdict::{Outcome, Verdict},
};

/// Hands a frame, whose time to live has been seen to be above 1, to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn deliver(ctx: &TcContext, headers: &Headers, endpoint: &Endpoint, path: Path) -> Outcome {
    decrement_ttl(ctx, headers, 0)?;
    hand_over(ctx, endpoint, path)
}

/// As [`deliver`], for a frame whose time to live has been taken care of.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn hand_over(ctx: &TcContext, endpoint: &Endpoint, path: Path) -> Outcome {
    address_to_pod(ctx, endpoint)?;
    // By itself the kernel does this from 6.15 only.
    if !ctx.is_for_this_host() {
        ctx.set_packet_host();
    }
    Ok(Verdict::Redirect(path, redirect_peer(endpoint.ifindex)))
}

/// Sets the link addresses of a frame that goes to a pod.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(always)]
pub fn address_to_pod(ctx: &TcContext, endpoint: &Endpoint) -> Result<(), Drop> {
    set_macs(ctx, endpoint.pod_mac, endpoint.host_mac)
}
