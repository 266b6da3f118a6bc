//! The API servers themselves as endpoints of the service `default/kubernetes`.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Parser as _;
use podwire::objects::client::Server;
use podwire_core::services::ServiceName;
use serde_json::json;
use tokio::sync::mpsc;
use xtask::api_server::Certificate;
use xtask::lab::traffic::reserved_address;

use super::*;
use crate::in_pod::{INSIDE, Options, in_pod, service_account};
use crate::watching::{LOOPBACKS, open_https};

const NAME: &str = "services::api_servers::an_agent_needs_no_cluster_ip_of_the_api_server";
/// The variable with the path of the file of endpoints.
const KEPT: &str = "PODWIRE_TEST_KEPT";
/// In the place of the ClusterIP of each family. No server listens at port 443 there.
const CLUSTER_IPS: [&str; 2] = ["127.96.0.1", "::1"];

/// An earlier agent has kept two endpoints. At one of them, no server listens. The agent gets the
/// services from the other one, and with them all endpoints of now. When its server stops, it goes
/// on to another.
#[tokio::test]
async fn an_agent_needs_no_cluster_ip_of_the_api_server() {
    if std::env::var_os(INSIDE).is_some() {
        watch_until_the_second_service().await;
        return;
    }
    for (loopback, cluster_ip) in LOOPBACKS.into_iter().zip(CLUSTER_IPS) {
        check_agent(loopback, cluster_ip);
    }
}

fn check_agent(loopback: IpAddr, cluster_ip: &str) {
    // As any client in a pod, the agent checks the certificate for the address in its environment.
    let certificate = Certificate::new(&[cluster_ip]).unwrap();
    let servers = [0; 2].map(|_| with_services(1));
    let addresses = servers.each_ref().map(|server| {
        server.only_tokens(&["of the pod"]);
        open_https(server, loopback, certificate.clone())
    });
    servers.iter().for_each(|server| server.put(slice_of_kubernetes(addresses)));
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("api-servers.json");
    let nowhere = reserved_address(loopback).unwrap();
    std::fs::write(&kept, json!([nowhere, addresses[0]]).to_string()).unwrap();
    let account = service_account(&certificate);
    let mut agent = in_pod(NAME, account.path());
    agent.envs([("KUBERNETES_SERVICE_HOST", cluster_ip), ("KUBERNETES_SERVICE_PORT", "443")]);
    let mut agent = agent.env(KEPT, &kept).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the agent keeps the endpoints", || {
        let text = std::fs::read(&kept).unwrap();
        let mut found: Vec<SocketAddr> = serde_json::from_slice(&text).unwrap_or_default();
        found.sort_unstable();
        let mut expected = addresses;
        expected.sort_unstable();
        found == expected
    });
    servers[0].stop();
    servers[1].put(service(2));
    let outcome = agent.wait().unwrap();
    assert!(outcome.success(), "{outcome}");
    assert!(!servers[1].requests().is_empty());
}

/// Gets changes of services until one tells of the second service.
async fn watch_until_the_second_service() {
    let Options { api } = Options::parse_from(["agent"]);
    let kept = std::env::var_os(KEPT).unwrap().into();
    let server = Server::new(api, pace().silence, Some(kept)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (events, mut queue) = mpsc::channel(16);
    let source = Source { server, saved: folder.path().join(FILE), pace: pace() };
    let watching = tokio::spawn(source.watch(events));
    let second = ServiceName { namespace: "shop".into(), name: "web2".into() };
    let told = async {
        while let Some(event) = queue.recv().await {
            if matches!(&event, Event::ServicesChanged(changes) if changes.services.contains_key(&second)) {
                return;
            }
        }
        panic!("the source has ended");
    };
    timeout(PATIENCE, told).await.expect("nobody told of the second service");
    watching.abort();
}

/// Returns the slice of `default/kubernetes`.
fn slice_of_kubernetes(addresses: [SocketAddr; 2]) -> serde_json::Value {
    // Both have one address, so the ports make the difference.
    let ports = addresses.map(|at| json!({ "name": "https", "port": at.port(), "protocol": "TCP" }));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "addressType": if addresses[0].is_ipv4() { "IPv4" } else { "IPv6" },
        "metadata": {
            "namespace": "default", "name": "kubernetes",
            "labels": { "kubernetes.io/service-name": "kubernetes" },
        },
        "ports": ports,
        "endpoints": [{ "addresses": [addresses[0].ip()], "conditions": { "ready": true } }],
    })
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
