//! Tests of what this node serves.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::{
    Backend, Endpoint, EndpointPort, EndpointSlice, Hints, Protocol, Service, ServiceName, ServicePort,
    ThisNode, TrafficPolicy,
};

mod frontends;
mod health;
mod properties;
mod real_cluster;
mod slices;
mod topology;
mod uses;

/// The node that serves. Endpoints with the word `here` are on it.
const NODE: &str = "node-1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn node() -> ThisNode {
    ThisNode { name: NODE.into(), zone: None, addresses: Vec::new() }
}

fn name() -> ServiceName {
    ServiceName { namespace: "shop".into(), name: "web".into() }
}

/// Returns a Service with a ClusterIP of each family, and a port: 80, `http`, TCP.
fn service() -> Service {
    Service {
        name: name(),
        cluster_ips: vec![ip("10.96.0.7"), ip("fd00:96::7")],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![service_port("http", Protocol::Tcp, 80)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_port: None,
    }
}

fn service_port(name: &str, protocol: Protocol, number: u16) -> ServicePort {
    ServicePort { name: name.into(), protocol, port: port(number), node_port: None }
}

fn endpoint_port(name: &str, protocol: Protocol, number: u16) -> EndpointPort {
    EndpointPort { name: name.into(), protocol, port: port(number) }
}

/// Returns a slice of [`service`]. Its endpoints have the port 8080 for the Service's `http`.
fn slice(endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: "web-1".into(),
        service: name(),
        ports: vec![endpoint_port("http", Protocol::Tcp, 8080)],
        endpoints: endpoints.iter().map(|words| endpoint(words)).collect(),
    }
}

/// Returns an endpoint from words: an address, or the last number of one in 10.0.0.0/8, then
/// `ready` (and serving), `serving`, `terminating`, `here` (on this node), `zone-…` and `node-…`
/// (hints).
fn endpoint(words: &str) -> Endpoint {
    let mut words = words.split(' ');
    let address = words.next().unwrap();
    let mut endpoint = Endpoint {
        address: address.parse().map_or_else(|_| ip(address), |last: u8| ip(&format!("10.0.0.{last}"))),
        is_ready: false,
        is_serving: false,
        is_terminating: false,
        node: Some("elsewhere".into()),
        hints: None,
    };
    let mut hints = Hints::default();
    for word in words {
        match word {
            "ready" => (endpoint.is_ready, endpoint.is_serving) = (true, true),
            "serving" => endpoint.is_serving = true,
            "terminating" => endpoint.is_terminating = true,
            "here" => endpoint.node = Some(NODE.into()),
            zone if zone.starts_with("zone-") => drop(hints.zones.insert(zone.into())),
            node if node.starts_with("node-") => drop(hints.nodes.insert(node.into())),
            unknown => panic!("{unknown}"),
        }
    }
    endpoint.hints = hints.boxed();
    endpoint
}

/// Returns backends as addresses and ports.
fn sockets(backends: &[Backend]) -> Vec<String> {
    backends
        .iter()
        .map(|backend| std::net::SocketAddr::new(backend.address, backend.port.get()).to_string())
        .collect()
}
