//! A Service object.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use ipnet::IpNet;
use podwire_core::services::{Protocol, Service, ServiceName, ServicePort, TrafficPolicy};
use serde::{Deserialize, Serialize};

use super::{Metadata, ProtocolName, SERVICE, address, exact, metadata, tcp};

/// `spec.clusterIPs` of a headless service.
const HEADLESS: &str = "None";
/// Seconds for which a client keeps its backend if the object does not say so (the API's default).
const AFFINITY: NonZeroU32 = NonZeroU32::new(10_800).unwrap();

/// The fields of a Service object that the agent reads. The saved list holds services in this form,
/// too.
#[derive(Deserialize, Serialize)]
pub(super) struct ServiceObject {
    #[serde(skip_deserializing)]
    kind: &'static str,
    metadata: Metadata,
    spec: ServiceSpec,
    status: Option<ServiceStatus>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "type", skip_serializing)]
    kind: Option<String>,
    #[serde(rename = "clusterIP", skip_serializing)]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs", skip_serializing_if = "Option::is_none")]
    external_ips: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer_source_ranges: Option<Vec<String>>,
    ports: Option<Vec<ServicePortObject>>,
    #[serde(default, with = "TrafficPolicyName")]
    internal_traffic_policy: TrafficPolicy,
    #[serde(default, with = "TrafficPolicyName")]
    external_traffic_policy: TrafficPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity_config: Option<AffinityConfig>,
    health_check_node_port: Option<u16>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServicePortObject {
    name: Option<String>,
    #[serde(default = "tcp", with = "ProtocolName")]
    protocol: Protocol,
    port: NonZeroU16,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_port: Option<u16>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<NonZeroU32>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Deserialize, Serialize)]
struct LoadBalancer {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    ip: Option<String>,
    #[serde(skip_serializing)]
    ip_mode: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(remote = "TrafficPolicy")]
enum TrafficPolicyName {
    Cluster,
    Local,
}

impl ServiceObject {
    pub(super) fn service(self) -> Result<Option<Service>, String> {
        let Self { metadata, spec, status, .. } = self;
        let cluster_ips = match spec.cluster_ips {
            Some(addresses) if !addresses.is_empty() => addresses,
            _ => spec.cluster_ip.into_iter().filter(|address| !address.is_empty()).collect(),
        };
        let is_headless = cluster_ips.is_empty() || cluster_ips.iter().any(|address| address == HEADLESS);
        let is_external_name = spec.kind.as_deref() == Some("ExternalName");
        if is_headless || is_external_name || metadata.labels.is_some_and(|labels| labels.proxy.is_some()) {
            return Ok(None);
        }
        let ingress = status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
        let is_vip = |ingress: &Ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        let vips = ingress.unwrap_or_default().into_iter().filter(is_vip);
        let vips = vips.filter_map(|ingress| ingress.ip).filter(|ip| !ip.is_empty()).collect();
        // kube-proxy does not read the annotation with this name, which is for cloud providers.
        let source_ranges = spec.load_balancer_source_ranges.unwrap_or_default();
        let source_ranges = networks("spec.loadBalancerSourceRanges", &source_ranges)?;
        let timeout = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
        let ports = spec.ports.unwrap_or_default().into_iter().map(|port| ServicePort {
            name: port.name.unwrap_or_default(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port.and_then(NonZeroU16::new),
        });
        Ok(Some(Service {
            name: ServiceName { namespace: metadata.namespace.into(), name: metadata.name.into() },
            cluster_ips: addresses("spec.clusterIPs", Some(cluster_ips))?,
            external_ips: addresses("spec.externalIPs", spec.external_ips)?,
            load_balancer_ips: addresses("status.loadBalancer.ingress", Some(vips))?,
            source_ranges,
            ports: exact(ports.collect()),
            internal_policy: spec.internal_traffic_policy,
            external_policy: spec.external_traffic_policy,
            affinity: match spec.session_affinity.as_deref() {
                Some("ClientIP") => Some(timeout.unwrap_or(AFFINITY)),
                _ => None,
            },
            health_check_port: spec.health_check_node_port.and_then(NonZeroU16::new),
        }))
    }
}

fn addresses(field: &str, texts: Option<Vec<String>>) -> Result<Vec<IpAddr>, String> {
    let addresses =
        texts.unwrap_or_default().iter().map(|text| address(field, text)).collect::<Result<_, _>>();
    addresses.map(exact)
}

fn networks(field: &str, texts: &[String]) -> Result<Vec<IpNet>, String> {
    // The API server accepts blanks around these networks.
    let parse = |text: &str| text.trim().parse::<IpNet>().map(|network| network.trunc());
    texts.iter().map(|text| parse(text).map_err(|_| format!("{field}: `{text}` is not a network"))).collect()
}

fn texts<T: ToString>(values: &[T]) -> Vec<String> {
    values.iter().map(ToString::to_string).collect()
}

impl From<&Service> for ServiceObject {
    fn from(service: &Service) -> Self {
        let ingress = service.load_balancer_ips.iter();
        let ingress = ingress.map(|ip| Ingress { ip: Some(ip.to_string()), ip_mode: None }).collect();
        let port = |port: &ServicePort| ServicePortObject {
            name: Some(port.name.clone()),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port.map(NonZeroU16::get),
        };
        let client_ip =
            |timeout| AffinityConfig { client_ip: Some(ClientIp { timeout_seconds: Some(timeout) }) };
        Self {
            kind: SERVICE,
            metadata: metadata(&service.name.namespace, &service.name.name, None),
            spec: ServiceSpec {
                kind: None,
                cluster_ip: None,
                cluster_ips: Some(texts(&service.cluster_ips)),
                external_ips: Some(texts(&service.external_ips)),
                load_balancer_source_ranges: Some(texts(&service.source_ranges)),
                ports: Some(service.ports.iter().map(port).collect()),
                internal_traffic_policy: service.internal_policy,
                external_traffic_policy: service.external_policy,
                session_affinity: service.affinity.map(|_| "ClientIP".to_owned()),
                session_affinity_config: service.affinity.map(client_ip),
                health_check_node_port: service.health_check_port.map(NonZeroU16::get),
            },
            status: Some(ServiceStatus { load_balancer: Some(LoadBalancer { ingress: Some(ingress) }) }),
        }
    }
}
