//! Services and EndpointSlices: the fields that the agent reads, and what this node serves of them.

pub mod list;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::Family;

mod endpoints;
mod frontends;
mod health;
mod served;
#[cfg(test)]
mod tests;
mod topology;
mod uses;

pub use frontends::{Answer, Backend, Frontend, FrontendKind, ServedPort, ThisNode, served_ports};
pub use health::{HealthCheck, health_check};
pub use served::ServedServices;
pub use uses::{Candidacy, Use, candidacies};

/// Namespace and name of a Service. Tables of 10,000 services have the name as their key, so all
/// copies of a name share its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ServiceName {
    /// Returns the name of the service of the API servers.
    pub fn kubernetes() -> Self {
        Self { namespace: "default".into(), name: "kubernetes".into() }
    }

    /// Returns whether this is the service of the API servers, `default/kubernetes`.
    pub fn is_kubernetes(&self) -> bool {
        &*self.namespace == "default" && &*self.name == "kubernetes"
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The fields of a Service object that the agent reads (`core/v1`). A Service without a ClusterIP
/// (headless, `ExternalName`), and one of another proxy (label
/// `service.kubernetes.io/service-proxy-name`), has no value of this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ServiceName,
    /// `spec.clusterIPs`: one address, or one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is `VIP`, which is the default.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`. Empty: every client. The annotation with this name is for
    /// cloud providers; kube-proxy does not read it.
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.sessionAffinity` is `ClientIP`: seconds for which a client keeps its backend.
    pub affinity: Option<NonZeroU32>,
    /// `spec.healthCheckNodePort`.
    pub health_check_port: Option<NonZeroU16>,
}

impl Service {
    /// Returns the families of its ClusterIPs. kube-proxy serves nothing of a Service in another
    /// family.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let has_one =
            |family: &Family| self.cluster_ips.iter().any(|address| Family::of(*address) == *family);
        Family::ALL.into_iter().filter(has_one)
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// `name`; empty if there is only one.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
    /// `nodePort`.
    pub node_port: Option<NonZeroU16>,
}

/// A transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Returns the name that commands show.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every usable endpoint.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// The fields of an EndpointSlice object that the agent reads (`discovery.k8s.io/v1`). A slice of
/// type `FQDN` has no value of this type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.name`. The namespace is the Service's.
    pub name: String,
    /// The Service: namespace, and the label `kubernetes.io/service-name`.
    pub service: ServiceName,
    /// `ports`. A port without a number is left out.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`.
    pub endpoints: Vec<Endpoint>,
}

/// A port of the endpoints of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// `name`: that of the Service's port.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of `addresses`. The others have no meaning (the API's documentation).
    pub address: IpAddr,
    /// `conditions.ready`; true if it is missing.
    pub is_ready: bool,
    /// `conditions.serving`; true if it is missing.
    pub is_serving: bool,
    /// `conditions.terminating`; false if it is missing.
    pub is_terminating: bool,
    /// `nodeName`.
    pub node: Option<Box<str>>,
    /// `hints`. Few endpoints have any, so all others need only a pointer for them.
    pub hints: Option<Box<Hints>>,
}

impl Endpoint {
    /// Returns whether it has a hint for any zone.
    pub(crate) fn has_zones(&self) -> bool {
        self.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty())
    }

    /// Returns whether it has a hint for any node.
    pub(crate) fn has_nodes(&self) -> bool {
        self.hints.as_ref().is_some_and(|hints| !hints.nodes.is_empty())
    }

    pub(crate) fn is_for_zone(&self, zone: &str) -> bool {
        self.hints.as_ref().is_some_and(|hints| hints.zones.contains(zone))
    }

    pub(crate) fn is_for_node(&self, node: &str) -> bool {
        self.hints.as_ref().is_some_and(|hints| hints.nodes.contains(node))
    }
}

/// The zones and nodes whose clients should use an endpoint. At least one set is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: BTreeSet<String>,
    /// `forNodes[].name`.
    pub nodes: BTreeSet<String>,
}

impl Hints {
    /// Returns them for an endpoint. `None`: there are none.
    pub fn boxed(self) -> Option<Box<Self>> {
        let is_empty = self.zones.is_empty() && self.nodes.is_empty();
        (!is_empty).then(|| Box::new(self))
    }
}
