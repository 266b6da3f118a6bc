//! Why new connections reach an endpoint of a Service, or do not. For operators; the decision is
//! that of `topology`. Pure.

use super::endpoints::{Candidate, candidates};
use super::{Answer, Backend, Endpoint, EndpointSlice, ServedPort, ThisNode, topology};

/// An endpoint of a port of a Service, used or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidacy<'a> {
    /// Where it is.
    pub backend: Backend,
    /// Its entry in a slice.
    pub endpoint: &'a Endpoint,
    cluster: Use,
    local: Use,
}

/// Whether new connections reach an endpoint, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// They do: it is ready.
    Ready,
    /// They do: it is about to go, but it still serves, and no ready endpoint is left.
    LastResort,
    /// They do not: it is not ready.
    NotReady,
    /// They do not: it is about to go.
    Terminating,
    /// They do not: its hints are for other zones, and this node's zone has a ready endpoint.
    OtherZone,
    /// They do not: its hints are for other nodes, and this node has a ready endpoint.
    OtherNode,
    /// They do not: the traffic policy is `Local`, and it is on another node.
    NotLocal,
}

impl Use {
    /// Returns the name that commands show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::LastResort => "last-resort",
            Self::NotReady => "not-ready",
            Self::Terminating => "terminating",
            Self::OtherZone => "other-zone",
            Self::OtherNode => "other-node",
            Self::NotLocal => "not-local",
        }
    }

    /// Returns whether new connections reach the endpoint.
    pub fn is_used(self) -> bool {
        matches!(self, Self::Ready | Self::LastResort)
    }
}

impl Candidacy<'_> {
    /// Returns whether connections that get this answer reach the endpoint, and why.
    pub fn of(&self, answer: Answer) -> Use {
        match answer {
            // Without a backend for the policy `Cluster` there is none for `Local` either.
            Answer::Cluster | Answer::Refused => self.cluster,
            Answer::Local | Answer::Dropped => self.local,
        }
    }
}

/// Returns all endpoints of a served port, sorted by address and port.
///
/// `slices`: all EndpointSlices of the Service, in any order.
pub fn candidacies<'a>(
    slices: &[&'a EndpointSlice],
    port: &ServedPort,
    node: &ThisNode,
) -> Vec<Candidacy<'a>> {
    let candidates = candidates(slices, port.family, &port.name, port.protocol, node);
    let elsewhere = topology::elsewhere(&candidates, node);
    let (cluster, local) = (topology::cluster(&candidates, node), topology::local(&candidates));
    let candidacy = |candidate: &Candidate<'a>| Candidacy {
        backend: candidate.backend,
        endpoint: candidate.endpoint,
        cluster: use_of(candidate, &cluster, elsewhere),
        local: use_of(candidate, &local, Use::NotLocal),
    };
    candidates.iter().map(candidacy).collect()
}

/// `chosen`: the endpoints that are used, sorted. `elsewhere`: why a ready one may be none of them.
fn use_of(candidate: &Candidate<'_>, chosen: &[Backend], elsewhere: Use) -> Use {
    match (chosen.binary_search(&candidate.backend).is_ok(), candidate.endpoint) {
        (true, Endpoint { is_ready: true, .. }) => Use::Ready,
        (true, _) => Use::LastResort,
        (false, Endpoint { is_ready: true, .. }) => elsewhere,
        (false, Endpoint { is_terminating: true, .. }) => Use::Terminating,
        (false, _) => Use::NotReady,
    }
}
