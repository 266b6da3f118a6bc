//! The health check of a Service, which cloud load balancers use to choose nodes. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use super::endpoints::candidates;
use super::{EndpointSlice, Service, ThisNode, TrafficPolicy};
use crate::model::Family;

/// The health check of a Service: load balancers ask each node, at this port, whether it has
/// endpoints of the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: NonZeroU16,
    /// Number of endpoints on this node that are ready, by the family of the address at which the
    /// question arrives. kube-proxy does not listen in other families.
    pub local_ready: BTreeMap<Family, usize>,
}

/// Returns a Service's health check, if it has one.
///
/// `slices`: all EndpointSlices of this Service, in any order.
pub fn health_check(service: &Service, slices: &[&EndpointSlice], node: &ThisNode) -> Option<HealthCheck> {
    let port = service.health_check_port.filter(|_| service.external_policy == TrafficPolicy::Local)?;
    let count = |family| (family, count_local_ready(slices, family, node));
    Some(HealthCheck { port, local_ready: service.families().map(count).collect() })
}

/// Returns the number of a Service's endpoints in a family that are ready and on this node. An
/// endpoint with several ports counts once. A port of a slice that the Service does not have
/// counts, too, as in kube-proxy.
fn count_local_ready(slices: &[&EndpointSlice], family: Family, node: &ThisNode) -> usize {
    let ports = slices.iter().flat_map(|slice| &slice.ports);
    let ports: BTreeSet<_> = ports.map(|port| (port.name.as_str(), port.protocol)).collect();
    let candidates =
        ports.into_iter().flat_map(|(name, protocol)| candidates(slices, family, name, protocol, node));
    let counted = candidates.filter(|candidate| candidate.backend.is_local && candidate.endpoint.is_ready);
    counted.map(|candidate| candidate.backend.address).collect::<BTreeSet<_>>().len()
}
