//! Which endpoints of a port this node uses: readiness, then hints (`pkg/proxy/topology.go` of
//! Kubernetes 1.36).

use super::endpoints::Candidate;
use super::{Backend, Endpoint, ThisNode, Use};

/// Returns the endpoints for the traffic policy `Cluster`. It is empty only if no endpoint of the
/// port can be used anywhere.
pub(super) fn cluster(candidates: &[Candidate<'_>], node: &ThisNode) -> Vec<Backend> {
    let preference = Preference::of(candidates, node);
    choose(candidates, |candidate| preference.admits(candidate, node))
}

/// Returns the endpoints for the traffic policy `Local`. Hints have no effect on it.
pub(super) fn local(candidates: &[Candidate<'_>]) -> Vec<Backend> {
    choose(candidates, |candidate| candidate.backend.is_local)
}

/// Returns why the policy `Cluster` may leave a ready endpoint out. Without hints it leaves none out.
pub(super) fn elsewhere(candidates: &[Candidate<'_>], node: &ThisNode) -> Use {
    match Preference::of(candidates, node) {
        Preference::SameNode => Use::OtherNode,
        Preference::SameZone | Preference::Anywhere => Use::OtherZone,
    }
}

/// Returns the ready ones of the `admitted` endpoints. If there is none, returns those that are
/// about to go but still serve.
fn choose(candidates: &[Candidate<'_>], admitted: impl Fn(&Candidate<'_>) -> bool) -> Vec<Backend> {
    let collect = |is_usable: fn(&Endpoint) -> bool| -> Vec<Backend> {
        let usable = candidates.iter().filter(|candidate| is_usable(candidate.endpoint));
        let admitted = usable.filter(|candidate| admitted(candidate));
        let mut backends: Vec<_> = admitted.map(|candidate| candidate.backend).collect();
        backends.shrink_to_fit();
        backends
    };
    let ready = collect(|endpoint| endpoint.is_ready);
    if !ready.is_empty() {
        return ready;
    }
    collect(|endpoint| endpoint.is_serving && endpoint.is_terminating)
}

/// The endpoints that the hints ask this node to use. The Service's `trafficDistribution` has no
/// part in it: the EndpointSlice controller has turned it into hints.
#[derive(Clone, Copy)]
enum Preference {
    /// All.
    Anywhere,
    /// Those with a hint for this node's zone.
    SameZone,
    /// Those with a hint for this node.
    SameNode,
}

impl Preference {
    /// A kind of hint counts if every ready endpoint has one of this kind, and at least one of
    /// them is for this node. Otherwise some node could be left without an endpoint.
    fn of(candidates: &[Candidate<'_>], node: &ThisNode) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.endpoint.is_ready);
        let counts = |preference: Self, is_hinted: fn(&Candidate<'_>) -> bool| {
            ready().all(is_hinted) && ready().any(|candidate| preference.admits(candidate, node))
        };
        if counts(Self::SameNode, |candidate| candidate.endpoint.has_nodes()) {
            Self::SameNode
        } else if counts(Self::SameZone, |candidate| candidate.endpoint.has_zones()) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn admits(self, candidate: &Candidate<'_>, node: &ThisNode) -> bool {
        match self {
            Self::Anywhere => true,
            Self::SameZone => node.zone.as_ref().is_some_and(|zone| candidate.endpoint.is_for_zone(zone)),
            Self::SameNode => candidate.endpoint.is_for_node(&node.name),
        }
    }
}
