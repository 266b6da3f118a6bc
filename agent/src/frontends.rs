//! The frontends of services: where clients reach a service, who serves it, and which backends new
//! connections reach, as `podwire services` shows them. The fields are stable: scripts read them.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use podwire_common::abi;
use podwire_common::reason::Drop as Reason;
use podwire_core::features::{Clients, NotServed, Places, why_not};
use podwire_core::services::{
    Candidacy, EndpointSlice, ServedPort, ServedServices, Service, ThisNode, Use, candidacies, served_ports,
};
use serde::{Deserialize, Serialize};

use crate::packet_record::End;

/// An address and port at which clients reach a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// Namespace and name of the Service. None: no agent names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the Service's port, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_name: Option<String>,
    /// `cluster-ip`, `node-port`, `external-ip` or `load-balancer`. None: no agent names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The address; `0.0.0.0` and `::` are all addresses of the node.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Seconds for which a client keeps its backend. None: the service has no session affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<NonZeroU32>,
    /// Who translates connections of this node's pods and processes. None: no entry of the tables
    /// serves them, and no agent knows.
    #[serde(flatten)]
    pub inside: Option<Server>,
    /// Who translates connections of all other clients. None: the address is not for them, or as for
    /// [`Self::inside`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Server>,
    /// All endpoints of the port, used or not.
    pub backends: Vec<Backend>,
}

/// Who serves some clients of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// `podwire` or `kube-proxy`.
    pub served_by: String,
    /// Why kube-proxy does. None: Podwire does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// What new connections get instead of a backend: `refused` or `dropped`. None: a backend, or
    /// kube-proxy serves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Whether the programs leave this node's own processes to kube-proxy. None: they do not, or
    /// kube-proxy serves all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaves_processes: Option<bool>,
    /// Number of the list in the table `BACKENDS`, hexadecimal. None: kube-proxy serves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
}

impl Server {
    /// Returns that the programs serve, as an entry of the table `SERVICES` says.
    pub fn podwire(service: Option<&abi::Service>) -> Self {
        let answer = service.and_then(abi::Service::refusal).map(|reason| match reason {
            Reason::NoBackend => "refused".into(),
            _ => "dropped".into(),
        });
        let list = service.map(|service| format!("{:016x}", service.list));
        let leaves = service.is_some_and(|service| service.flags & abi::SERVICE_NOT_FOR_PROCESSES != 0);
        Self {
            served_by: "podwire".into(),
            because: None,
            answer,
            leaves_processes: leaves.then_some(true),
            list,
        }
    }

    /// Returns that kube-proxy serves, for this reason.
    pub fn kube_proxy(because: &str) -> Self {
        Self {
            served_by: "kube-proxy".into(),
            because: Some(because.into()),
            answer: None,
            leaves_processes: None,
            list: None,
        }
    }
}

/// An endpoint of a service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Its address, port and names.
    #[serde(flatten)]
    pub end: End,
    /// Whether new connections of pods and nodes reach it. None: no agent knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<Reach>,
    /// The same for clients outside the cluster. None for a ClusterIP, which is not for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<Reach>,
}

/// Whether new connections reach a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Whether they do.
    pub used: bool,
    /// Why: `ready` and `last-resort` if they do; else `not-ready`, `terminating`, `other-zone`,
    /// `other-node` or `not-local`.
    pub why: String,
}

impl From<Use> for Reach {
    fn from(of: Use) -> Self {
        Self { used: of.is_used(), why: of.name().into() }
    }
}

impl Frontend {
    /// Returns who serves these clients.
    pub fn server(&mut self, clients: Clients) -> &mut Option<Server> {
        match clients {
            Clients::Inside => &mut self.inside,
            Clients::Outside => &mut self.outside,
        }
    }
}

/// What the owner of state knows of all services. Its frontends are many, so the asking task derives
/// them.
#[derive(Debug)]
pub struct Snapshot {
    /// The services, with their slices.
    pub services: Vec<(Arc<Service>, Vec<Arc<EndpointSlice>>)>,
    /// This node.
    pub node: ThisNode,
    /// Where pods and processes of nodes are.
    pub places: Places,
    /// Whether the host has IPsec policies.
    pub has_policies: bool,
}

impl Snapshot {
    /// Returns the frontends, in the order of the services. The agent wants those without a reason
    /// to be in the tables.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        let mut served = ServedServices::default();
        for (service, slices) in &self.services {
            let slices: Vec<_> = slices.iter().map(Arc::as_ref).collect();
            served.set(&service.name, Some(served_ports(service, &slices, &self.node)));
        }
        self.services.iter().flat_map(move |(service, slices)| {
            let slices: Vec<_> = slices.iter().map(Arc::as_ref).collect();
            let ports = served.get_key_value(&service.name).map(|(_, ports)| ports);
            let of_port = |port| {
                let backends = candidacies(&slices, port, &self.node);
                self.of_port(&served, service, port, &backends)
            };
            ports.into_iter().flatten().flat_map(of_port).collect::<Vec<_>>()
        })
    }

    fn of_port(
        &self,
        served: &ServedServices,
        service: &Service,
        port: &ServedPort,
        backends: &[Candidacy<'_>],
    ) -> Vec<Frontend> {
        let frontend = |frontend: &podwire_core::services::Frontend| {
            let backend = |candidacy: &Candidacy<'_>| Backend {
                end: End {
                    address: candidacy.backend.address,
                    port: Some(candidacy.backend.port.get()),
                    pod: None,
                    node: candidacy.endpoint.node.as_deref().map(str::to_owned),
                },
                inside: Some(candidacy.of(frontend.inside).into()),
                outside: frontend.outside.map(|answer| candidacy.of(answer).into()),
            };
            let server = |clients: Clients| {
                clients.answer(frontend)?;
                let policies = self.has_policies.then_some(NotServed::IpsecPolicies);
                let why_not = || why_not(served, &self.places, &service.name, port, frontend);
                Some(match policies.or_else(why_not) {
                    Some(because) => Server::kube_proxy(because.name()),
                    None => Server::podwire(None),
                })
            };
            Frontend {
                service: Some(service.name.to_string()),
                port_name: Some(port.name.clone()).filter(|name| !name.is_empty()),
                kind: Some(frontend.kind.name().into()),
                protocol: port.protocol.name().into(),
                address: frontend.address,
                port: frontend.port.get(),
                affinity: port.affinity,
                inside: server(Clients::Inside),
                outside: server(Clients::Outside),
                backends: backends.iter().map(backend).collect(),
            }
        };
        port.frontends.iter().map(frontend).collect()
    }
}
