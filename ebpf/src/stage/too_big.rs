//! A packet that does not fit the path to another node.

use aya_ebpf::programs::TcContext;
use podwire_common::{abi::Endpoint, reason::Path};

use super::local;
use crate::{
    packet::{Ip, Parsed},
    verdict::{Outcome, Verdict},
};

/// Returns whether [`answer`] can report the packet: it forbids fragmentation, and its headers fit
/// the quote. The MTU is one that hosts believe. All other packets are left to the kernel.
#[inline(always)]
pub fn can_answer<I: Ip>(packet: &Parsed<I>, mtu: u32) -> bool {
    mtu >= I::LEAST_MTU && packet.headers.ip.dont_fragment() && packet.is_quotable()
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
    I::too_big(ctx, &packet.headers, &endpoint.gateway, &endpoint.host_mac, mtu)?;
    Ok(Verdict::redirect(Path::TooBigAnswered, local::into_endpoint(ctx, endpoint)))
}
