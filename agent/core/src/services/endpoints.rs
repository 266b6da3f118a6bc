//! The endpoints of a Service's port, read from its EndpointSlices.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{Backend, Endpoint, EndpointSlice, Protocol, ThisNode};
use crate::model::Family;

/// An endpoint of a port of a Service, used or not.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    /// Where it is.
    pub backend: Backend,
    /// Its entry in a slice.
    pub endpoint: &'a Endpoint,
}

/// Returns the endpoints of a port in a family: by address and port, each once.
///
/// - `slices`: all EndpointSlices of one Service.
/// - `name`: of the Service's port. Slices name their ports in the same way.
pub(super) fn candidates<'a>(
    slices: &[&'a EndpointSlice],
    family: Family,
    name: &str,
    protocol: Protocol,
    node: &ThisNode,
) -> Vec<Candidate<'a>> {
    let mut found: BTreeMap<(IpAddr, NonZeroU16), &Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().filter(|port| port.name == name && port.protocol == protocol);
        for port in ports {
            for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family) {
                let best = found.entry((endpoint.address, port.port)).or_insert(endpoint);
                if precedence(endpoint) > precedence(best) {
                    *best = endpoint;
                }
            }
        }
    }
    let candidate = |((address, port), endpoint): (_, &'a Endpoint)| {
        let is_local = endpoint.node.as_deref() == Some(&node.name);
        Candidate { backend: Backend { address, port, is_local }, endpoint }
    };
    found.into_iter().map(candidate).collect()
}

/// Returns the rank of an entry among several for one address and port. The highest one counts.
///
/// An endpoint is in two slices while it moves from one to the other. An address is also there
/// twice if a new pod has the address of a terminating one. In kube-proxy, an endpoint that does
/// not terminate precedes one that does; among equals, chance decides. Here the conditions decide,
/// then names, so the order of the slices has no effect.
fn precedence(endpoint: &Endpoint) -> impl Ord {
    let Endpoint { is_ready, is_serving, is_terminating, .. } = *endpoint;
    (Reverse(is_terminating), is_ready, is_serving, &endpoint.node, &endpoint.hints)
}
