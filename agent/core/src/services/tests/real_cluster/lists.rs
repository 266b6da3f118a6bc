//! Reads the fields that the cluster's lists have. The agent's own decoder is in another crate.

use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use serde_json::Value;

use super::super::super::{
    Endpoint, EndpointPort, EndpointSlice, Hints, Protocol, Service, ServiceName, ServicePort, TrafficPolicy,
};

/// Returns the objects of a kind.
fn items(kind: &str) -> Vec<Value> {
    let text = include_str!("../../../../../../testdata/dual-stack/services.json");
    let list: Value = serde_json::from_str(text).unwrap();
    let items = list["items"].as_array().unwrap().iter();
    items.filter(|object| object["kind"] == kind).cloned().collect()
}

/// Returns the text of a field; empty if it is missing.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

/// Returns the elements of a list; none if it is missing.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn addresses(value: &Value) -> Vec<IpAddr> {
    list(value).iter().map(|address| text(address).parse().unwrap()).collect()
}

fn port(value: &Value) -> Option<NonZeroU16> {
    value.as_u64().and_then(|number| NonZeroU16::new(number.try_into().unwrap()))
}

fn protocol(value: &Value) -> Protocol {
    match text(value).as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        unknown => panic!("{unknown}"),
    }
}

fn policy(value: &Value) -> TrafficPolicy {
    if value == "Local" { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn name(namespace: &Value, name: &Value) -> ServiceName {
    ServiceName { namespace: text(namespace).into(), name: text(name).into() }
}

pub fn services() -> Vec<Service> {
    let list = items("Service");
    let is_other = |service: &&Value| {
        service["spec"]["clusterIP"] == "None"
            || service["metadata"]["labels"].get("service.kubernetes.io/service-proxy-name").is_some()
    };
    list.iter().filter(|service| !is_other(service)).map(service).collect()
}

fn service(object: &Value) -> Service {
    let spec = &object["spec"];
    let ranges = list(&spec["loadBalancerSourceRanges"]).iter();
    let ports = list(&spec["ports"]).iter().map(|value| ServicePort {
        name: text(&value["name"]),
        protocol: protocol(&value["protocol"]),
        port: port(&value["port"]).unwrap(),
        node_port: port(&value["nodePort"]),
    });
    let ingress = list(&object["status"]["loadBalancer"]["ingress"]).iter();
    let affinity = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
    Service {
        name: name(&object["metadata"]["namespace"], &object["metadata"]["name"]),
        cluster_ips: addresses(&spec["clusterIPs"]),
        external_ips: addresses(&spec["externalIPs"]),
        load_balancer_ips: ingress.map(|ingress| text(&ingress["ip"]).parse().unwrap()).collect(),
        source_ranges: ranges.map(|range| text(range).parse().unwrap()).collect(),
        ports: ports.collect(),
        internal_policy: policy(&spec["internalTrafficPolicy"]),
        external_policy: policy(&spec["externalTrafficPolicy"]),
        affinity: affinity.and_then(|seconds| NonZeroU32::new(seconds.try_into().unwrap())),
        health_check_port: port(&spec["healthCheckNodePort"]),
    }
}

pub fn slices() -> Vec<EndpointSlice> {
    let list = items("EndpointSlice");
    list.iter().map(slice).collect()
}

fn slice(object: &Value) -> EndpointSlice {
    let metadata = &object["metadata"];
    let ports = list(&object["ports"]).iter().map(|value| EndpointPort {
        name: text(&value["name"]),
        protocol: protocol(&value["protocol"]),
        port: port(&value["port"]).unwrap(),
    });
    EndpointSlice {
        name: text(&metadata["name"]),
        service: name(&metadata["namespace"], &metadata["labels"]["kubernetes.io/service-name"]),
        ports: ports.collect(),
        endpoints: list(&object["endpoints"]).iter().map(endpoint).collect(),
    }
}

fn endpoint(value: &Value) -> Endpoint {
    let conditions = &value["conditions"];
    let hints = |kind| list(&value["hints"][kind]).iter().map(|hint| text(&hint["name"])).collect();
    Endpoint {
        address: addresses(&value["addresses"])[0],
        is_ready: conditions["ready"].as_bool().unwrap_or(true),
        is_serving: conditions["serving"].as_bool().unwrap_or(true),
        is_terminating: conditions["terminating"].as_bool().unwrap_or(false),
        node: value["nodeName"].as_str().map(Into::into),
        hints: Hints { zones: hints("forZones"), nodes: hints("forNodes") }.boxed(),
    }
}
