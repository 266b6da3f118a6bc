//! Services that the programs serve: a pod's TCP connection to a ClusterIP goes to a pod, past the
//! host stack in both directions. No rule of the host translates anything here.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Pod};

use crate::service::service;
use crate::sockets::wait_until;
use crate::sweep::metric;

const SERVICE_PORT: u16 = 80;
const POD_PORT: u16 = 8080;

/// Returns a Service object with one port, and a ClusterIP of each family.
fn object(name: &str, addresses: [IpAddr; 2]) -> Value {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ports": [{ "name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": POD_PORT }],
        },
    })
}

/// Returns a service's EndpointSlice of a family, with these pods as endpoints.
fn slice(name: &str, pods: &[&Pod], family: usize) -> Value {
    let kind = ["IPv4", "IPv6"][family];
    let endpoint =
        |pod: &&Pod| json!({ "addresses": [pod.addresses()[family]], "conditions": { "ready": true } });
    json!({
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": format!("{name}-{}", kind.to_lowercase()),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": kind,
        "ports": [{ "name": "http", "port": POD_PORT, "protocol": "TCP" }],
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// Puts a service and its slices, and waits until the programs of both nodes serve so many addresses
/// of services.
fn put(lab: &Lab, name: &str, last: u8, pods: &[&Pod], entries: u32) {
    let api = lab.api_server().unwrap();
    api.put(object(name, service(last)));
    (0..2).for_each(|family| api.put(slice(name, pods, family)));
    let served = |node: &Node| metric(node, "podwire_table_entries{table=\"SERVICES\"}");
    for node in [lab.node(0), lab.node(1)] {
        let serves = || (served(node) == entries.to_string()).then_some(());
        assert!(wait_until(serves).is_some(), "{}\n{}", served(node), node.agent_log_tail(20));
    }
}

#[test]
fn pods_reach_backends_past_the_host_stack() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agent_arguments(&["--services", "on"]).build().unwrap();
        let client = lab.node(0).add_pod("client").unwrap();
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        put(&lab, "near", 0x30, &[&near], 2);
        put(&lab, "far", 0x31, &[&far], 4);
        for (last, server) in [(0x30, &near), (0x31, &far)] {
            for address in service(last) {
                let route = Route::translated(SocketAddr::new(address, SERVICE_PORT), POD_PORT);
                let exchange = traffic::tcp_exchange_on(&client, server, route, 1 << 20).unwrap();
                assert_eq!(exchange.peer_seen_by_client, route.destination, "{mode:?}");
                assert_eq!(exchange.peer_seen_by_server.ip(), exchange.client.ip(), "{mode:?}");
            }
        }
    }
}
