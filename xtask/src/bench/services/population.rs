//! Many services, with all fields that Kubernetes gives their objects. Their endpoints are pods of
//! the nodes that [`Lab::node_list_with`] invents.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use xtask::api_server::ApiServer;
use xtask::lab::{Lab, Proxied};

/// Services of the largest cluster.
pub(crate) const SERVICES: usize = 10_000;
/// Their endpoints.
pub(crate) const ENDPOINTS: usize = SERVICES / SIZES.len() * ENDPOINTS_OF_TEN;
/// Invented nodes, over which the endpoints are spread.
const NODES: u16 = 4998;
/// The numbers of endpoints of ten services.
const SIZES: [usize; 10] = [3, 3, 4, 4, 5, 5, 5, 5, 6, 10];
const ENDPOINTS_OF_TEN: usize = 50;
/// The port of all services, and that of their pods.
const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// The delay that a change may have: after a longer one, the next changes are not hurried.
const LATE: Duration = Duration::from_millis(500);

/// Returns a service's ClusterIP.
fn cluster_ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a61_0000 + number as u32)
}

fn name(number: usize) -> String {
    format!("service-{number:05}")
}

fn namespace(number: usize) -> String {
    format!("team-{:02}", number % 100)
}

/// Returns the pods of a service.
fn pods(number: usize) -> Range<usize> {
    let (tens, rest) = (number / SIZES.len(), number % SIZES.len());
    let first = tens * ENDPOINTS_OF_TEN + SIZES[..rest].iter().sum::<usize>();
    first..first + SIZES[rest]
}

/// Returns the address of a pod, or of another pod of its node that may take its place.
fn address(pod: usize, is_other: bool) -> Ipv4Addr {
    let (round, node) = (pod / usize::from(NODES), pod % usize::from(NODES));
    let [.., high, low] = node.to_be_bytes();
    Ipv4Addr::new(10, 32 + high, low, 2 + round as u8 + if is_other { 100 } else { 0 })
}

fn uid(kind: u16, number: usize) -> String {
    format!("{number:08x}-{kind:04x}-4ac9-b251-86e5427acc36")
}

/// Returns a Service object.
fn service(number: usize) -> Value {
    let address = cluster_ip(number);
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {
            "name": name(number),
            "namespace": namespace(number),
            "uid": uid(1, number),
            "creationTimestamp": "2026-11-28T09:15:51Z",
            "labels": { "app": name(number), "app.kubernetes.io/managed-by": "Helm" },
            "annotations": { "meta.helm.sh/release-name": name(number) },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT }],
            "selector": { "app": name(number) },
            "sessionAffinity": "None",
        },
        "status": { "loadBalancer": {} },
    })
}

/// Returns the EndpointSlice of a service. With another `turn`, another pod is in the place of the
/// first endpoint.
fn slice(number: usize, turn: usize) -> Value {
    let first = pods(number).start;
    let endpoint = |pod: usize| {
        let is_other = pod == first && turn % 2 == 1;
        let node = pod % usize::from(NODES);
        json!({
            "addresses": [address(pod, is_other)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("elsewhere{node}"),
            "targetRef": {
                "kind": "Pod",
                "name": format!("{}-6d4cf56db6-{pod:05}", name(number)),
                "namespace": namespace(number),
                "uid": uid(if is_other { 2 } else { 3 }, pod),
            },
            "zone": format!("zone-{}", node % 3),
        })
    };
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("{}-x7k2q", name(number)),
            "generateName": format!("{}-", name(number)),
            "namespace": namespace(number),
            "uid": uid(4, number),
            "creationTimestamp": "2026-11-28T09:15:52Z",
            "generation": 1 + turn,
            "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-11-28T09:15:51Z" },
            "labels": {
                "app": name(number),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name(number),
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "blockOwnerDeletion": true,
                "controller": true,
                "kind": "Service",
                "name": name(number),
                "uid": uid(1, number),
            }],
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": TARGET_PORT, "protocol": "TCP" }],
        "endpoints": pods(number).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Returns a service's objects.
pub(crate) fn objects(number: usize) -> [Value; 2] {
    [service(number), slice(number, 0)]
}

/// Returns a service for kube-proxy's rules.
pub(crate) fn proxied(number: usize) -> Proxied {
    Proxied {
        service: format!("{}/{}", namespace(number), name(number)),
        address: cluster_ip(number).into(),
        protocol: "tcp",
        ports: PORT..=PORT,
        target: Some(TARGET_PORT),
        endpoints: pods(number).map(|pod| address(pod, false).into()).collect(),
    }
}

/// Gives a lab's API server all nodes and services.
pub(crate) fn populate(lab: &Lab) -> Result<()> {
    lab.write_node_list(&lab.node_list_with(NODES)?)?;
    let api = lab.api_server()?;
    for number in 0..SERVICES {
        api.put(service(number));
        api.put(slice(number, 0));
    }
    // A watch starts with the objects, not with their changes.
    api.forget_changes();
    Ok(())
}

/// Changes of slices, one service after the other.
#[derive(Default)]
pub(crate) struct SliceChanges {
    done: usize,
    due: Option<Instant>,
}

impl SliceChanges {
    /// Changes a second.
    pub(crate) const RATE: u32 = 100;

    /// Changes a slice when the next change is due.
    pub(crate) fn next(&mut self, api: &ApiServer) {
        let now = Instant::now();
        // After a pause, do not catch up.
        let due = self.due.filter(|due| *due + LATE > now).unwrap_or(now);
        thread::sleep(due.saturating_duration_since(now));
        api.put(slice(self.done % SERVICES, 1 + self.done / SERVICES));
        self.done += 1;
        self.due = Some(due + Duration::from_secs(1) / Self::RATE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn endpoints_are_different_pods_and_as_many_as_said() {
        let addresses = |turn| -> Vec<String> {
            let slices = (0..SERVICES).map(|number| slice(number, turn));
            let of_slice = |slice: Value| slice["endpoints"].as_array().unwrap().clone();
            let endpoints = slices.flat_map(of_slice);
            endpoints.map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned()).collect()
        };
        let (all, other) = (addresses(0), addresses(1));
        assert_eq!(all.iter().chain(&other).collect::<BTreeSet<_>>().len(), ENDPOINTS + SERVICES);
        assert_eq!([all.len(), other.len()], [ENDPOINTS; 2]);
    }
}
