//! A packet that does not fit the path to another node.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Endpoint, NextHop},
    reason::Path,
};

use super::local;
use crate::{
    maps,
    packet::{Ip, Parsed, Skb, leave, redirect_into_stack},
    verdict::{Outcome, Verdict},
};

/// Returns whether [`answer`] can report the packet: it forbids fragmentation, and its headers fit
/// the quote. The MTU is one that hosts believe. All other packets are left to the kernel.
#[inline(always)]
pub fn can_answer<I: Ip>(packet: &Parsed<I>, mtu: u32) -> bool {
    packet.headers.ip.dont_fragment() && can_quote(packet, mtu)
}

/// Returns whether [`answer`] can report the packet, even if it may be fragmented.
#[inline(always)]
pub fn can_quote<I: Ip>(packet: &Parsed<I>, mtu: u32) -> bool {
    mtu >= I::LEAST_MTU && packet.is_quotable()
}

/// Tells the pod, in its gateway's name, the largest packet that the path takes.
///
/// The program answers itself, because the stack would answer with the MTU of its route, even if
/// the path takes less by now. Forwarded packets do not see path MTU exceptions
/// (`ip_forward_use_pmtu` is off by default).
///
/// # Errors
/// [`podwire_common::reason::Drop::RewriteFailed`].
#[inline(always)]
pub fn answer<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, endpoint: &Endpoint, mtu: u32) -> Outcome {
    let error = packet.error(I::TOO_BIG, mtu);
    I::answer_with_error(ctx, &packet.headers, &endpoint.gateway, &endpoint.host_mac, error)?;
    Ok(Verdict::redirect(Path::TooBigAnswered, local::into_endpoint(ctx, endpoint)))
}

/// Does the same as [`answer`] for the sender of any packet: a pod, or with `None` a client outside,
/// in the name of the address that it asked.
///
/// # Errors
/// As [`answer`].
#[inline(always)]
pub fn answer_sender<I: Ip>(
    ctx: &TcContext,
    packet: &Parsed<I>,
    endpoint: Option<&Endpoint>,
    mtu: u32,
) -> Outcome {
    let Some(endpoint) = endpoint else {
        packet.answer_as_destination(ctx, I::TOO_BIG, mtu)?;
        return Ok(Verdict::redirect(Path::TooBigAnswered, leave(ctx, ctx.ifindex(), &NextHop::UNKNOWN)));
    };
    answer(ctx, packet, endpoint, mtu)
}

/// Tells the host stack the same, in the name of the packet's receiver. The error arrives by the
/// VXLAN device: the host stack believes that address only there. `from_overlay` lets it pass.
///
/// # Errors
/// [`podwire_common::reason::Drop::RewriteFailed`].
#[inline(always)]
pub fn answer_stack<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, mtu: u32) -> Outcome {
    packet.answer_as_destination(ctx, I::TOO_BIG, mtu)?;
    Ok(Verdict::redirect(Path::TooBigAnswered, redirect_into_stack(maps::vxlan_ifindex())))
}
