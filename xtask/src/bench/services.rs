//! A pod reaches another by a service, and the same pod without it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Families, Pod};

use crate::bench::client::{Connections, FIRST_CONNECTION_PORT, ROUND_TRIP_PORT, Transport};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Report, Target};
use crate::bench::site::{self, Family, Place, Programs, Site, Way};
use crate::bench::{Effort, contest};

const POD: &str = "podwire, the pod itself";
const SERVICE: &str = "podwire, by its service";
/// The port of a service that only shows whether the agent has read the file.
const READY_PORT: u16 = 8000;
/// Turns beside the counted rounds.
const SPARE_TURNS: u16 = 50;

pub(crate) fn measure(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    for (place, name) in [(Place::SameNode, "same-node"), (Place::CrossNode, "cross-node")] {
        let folder = tempfile::tempdir().context("make a folder for the services")?;
        let file = folder.path().join("services.json");
        write(&file, &[])?;
        let path = file.to_string_lossy();
        let arguments = ["--services", "on", "--services-file", &path];
        let way = Way { arguments: &arguments, ..Way::VXLAN };
        let families = match family {
            Family::Ipv4 => Families::V4,
            Family::Ipv6 => Families::V6,
        };
        let lab = site::podwire(programs, way, place, families)?;
        let client = lab.node(0).add_pod("client")?;
        let last = &lab.nodes()[lab.nodes().len() - 1];
        let (server, backend) = (last.add_pod("server")?, last.add_pod("backend")?);
        let turns = u16::try_from(effort.rounds)?.checked_add(SPARE_TURNS).context("fewer rounds")?;
        let connections = FIRST_CONNECTION_PORT..=FIRST_CONNECTION_PORT + turns;
        let service = cluster_ip(family);
        write(&file, &objects(service, backend.address(), connections))?;
        wait(&client, &backend, service)?;
        let sites =
            [Site::of_pods(POD, &client, &server), Site::of_service(SERVICE, &client, &backend, service)];
        for (transport, protocol) in [(Transport::Tcp, "tcp"), (Transport::Udp, "udp")] {
            let figure = format!("service-{name}-{protocol}-rr");
            let one_way = contest::round_trips(&figure, transport, &sites, effort)?.one_way;
            one_way.record(&figure, SERVICE, POD, Ratio::Plain, Some(Target::AtMost(1.03)), report)?;
            report.charts.push(one_way.chart());
        }
        let figure = format!("service-{name}-connect");
        let comparison = connect(&figure, &sites, effort)?;
        comparison.record(&figure, SERVICE, POD, Ratio::Plain, Some(Target::AtLeast(0.92)), report)?;
        report.charts.push(comparison.chart());
    }
    Ok(())
}

fn connect(figure: &str, [pod, service]: &[Site; 2], effort: Effort) -> Result<Comparison> {
    let mut to_pod = Connections::new(pod);
    let mut to_service = Connections::new(service);
    let contestants = vec![
        Contestant::new(POD, || Ok([to_pod.measure(effort.turn)?])),
        Contestant::new(SERVICE, || Ok([to_service.measure(effort.turn)?])),
    ];
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
fn wait(client: &Pod, server: &Pod, service: IpAddr) -> Result<()> {
    let route = Route::translated(SocketAddr::new(service, READY_PORT), READY_PORT);
    let start = Instant::now();
    while traffic::tcp_exchange_on(client, server, route, 1).is_err() {
        ensure!(start.elapsed() < Duration::from_secs(60), "no agent serves {service}");
    }
    Ok(())
}
