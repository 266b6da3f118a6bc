//! Services: what they cost the clients, and the agent.

pub(crate) mod inside;
pub(crate) mod outside;
pub(crate) mod scale;

mod changes;
mod ends;
mod population;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::Ns;
use xtask::lab::traffic::{self, Route};

use crate::bench::Effort;
use crate::bench::client::{Connections, ROUND_TRIP_PORT};
use crate::bench::comparison::{Comparison, Contestant};
use crate::bench::site::{Family, Site};

const SERVICE: &str = "podwire, by its service";
/// The port of a service that only shows whether it is served.
const READY_PORT: u16 = 8000;
/// Turns beside the counted rounds.
const SPARE_TURNS: u16 = 50;

/// Measures connections per second. The servers' first port is `first`.
fn connect(figure: &str, sites: &[Site], first: u16, effort: Effort) -> Result<Comparison> {
    let contestant = |site| {
        let mut connections = Connections::from_port(site, first);
        Contestant::new(&site.name, move || Ok([connections.measure(effort.turn)?]))
    };
    let contestants = sites.iter().map(contestant).collect();
    let [comparison] = Comparison::run_all([(figure, "connections/s")], effort, contestants)?;
    Ok(comparison)
}

fn cluster_ip(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(10, 96, 0, 50).into(),
        Family::Ipv6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x50).into(),
    }
}

/// Returns a service with one pod behind it, and the service's slice. Each port leads to the same
/// port of the pod.
fn objects(service: IpAddr, pod: IpAddr, connections: RangeInclusive<u16>) -> [Value; 2] {
    let port = |(port, protocol)| json!({ "name": format!("{protocol}-{port}"), "port": port, "protocol": protocol });
    let tcp = [READY_PORT, ROUND_TRIP_PORT].into_iter().chain(connections).map(|port| (port, "TCP"));
    let ports: Vec<Value> = tcp.chain([(ROUND_TRIP_PORT, "UDP")]).map(port).collect();
    let family = if pod.is_ipv4() { "IPv4" } else { "IPv6" };
    let metadata = |name| json!({ "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "web" } });
    [
        json!({
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": metadata("web"),
            "spec": { "type": "ClusterIP", "clusterIP": service, "clusterIPs": [service], "ports": ports },
        }),
        json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": metadata("web-1"),
            "addressType": family,
            "ports": ports,
            "endpoints": [{ "addresses": [pod], "conditions": { "ready": true } }],
        }),
    ]
}

/// Replaces the file, so that no agent reads half of it.
fn write(file: &Path, objects: &[Value]) -> Result<()> {
    let list = json!({ "kind": "List", "apiVersion": "v1", "items": objects });
    let new = file.with_extension("new");
    fs::write(&new, list.to_string()).and_then(|()| fs::rename(&new, file)).context("write the services")
}

/// Waits until the client's node serves the service.
fn wait(client: &Ns, server: &Ns, service: IpAddr) -> Result<()> {
    let route = Route::translated(SocketAddr::new(service, READY_PORT), READY_PORT);
    let start = Instant::now();
    while traffic::tcp_exchange_on(client, server, route, 1).is_err() {
        ensure!(start.elapsed() < Duration::from_secs(60), "{service} is not served");
    }
    Ok(())
}
