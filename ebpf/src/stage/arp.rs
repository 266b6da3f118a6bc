//! Answers to a pod's ARP request for its gateway. The gateway is a permanent neighbour in the pod,
//! so this serves only tools that ask anyway.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    addr::{Addr, Mac},
    reason::{Drop, Path},
};

use super::{local, source};
use crate::{
    packet::Arp,
    verdict::{Outcome, Verdict},
};

/// Answers a request for the pod's gateway in the gateway's name.
///
/// # Errors
/// [`Drop::ArpNotForGateway`] for anything else.
#[inline(never)]
pub fn answer(ctx: &TcContext, frame_source: Mac) -> Outcome {
    let request = Arp::load(ctx)?;
    let endpoint = source::of_pod(ctx, &Addr::from_v4(request.sender), frame_source)?;
    if request.sender_mac != frame_source {
        return Err(Drop::SourceMacNotOwned);
    }
    if !request.is_request() || request.target != endpoint.gateway.v4() {
        return Err(Drop::ArpNotForGateway);
    }
    request.answer(ctx, endpoint.host_mac)?;
    Ok(Verdict::redirect(Path::ArpAnswered, local::into_endpoint(ctx, endpoint)))
}
