//! A pod reaches another by a service, and the same pod without it. A host outside reaches a pod by a
//! service's external address, with Podwire's programs and with rules as kube-proxy writes them.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Ns, Pod};

use crate::bench::client::{Connections, FIRST_CONNECTION_PORT, ROUND_TRIP_PORT, Transport};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Report, Target};
use crate::bench::site::{self, Family, Place, Programs, Site, Way};
use crate::bench::{Effort, contest};

const POD: &str = "podwire, the pod itself";
const SERVICE: &str = "podwire, by its service";
const KUBE_PROXY: &str = "podwire, by rules as kube-proxy's";
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
        let lab = site::podwire(programs, way, place, family.families())?;
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

/// Measures connections of a host outside, with the pod on the node that it asks and on another one.
pub(crate) fn measure_outside(
    programs: &Programs,
    family: Family,
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let turns = u16::try_from(effort.rounds)?.checked_add(SPARE_TURNS).context("fewer rounds")?;
    let connections = || FIRST_CONNECTION_PORT..=FIRST_CONNECTION_PORT + turns;
    let external = external_ip(family);
    for (number, name) in [(0, "here"), (1, "there")] {
        let folder = tempfile::tempdir().context("make a folder for the services")?;
        let file = folder.path().join("services.json");
        write(&file, &[])?;
        let path = file.to_string_lossy();
        let arguments = ["--services", "on", "--services-file", &path];
        let own = lab_outside(programs, &arguments, family)?;
        let peer = lab_outside(programs, &[], family)?;
        let [backend, of_peer] = [&own, &peer].map(|lab| lab.node(number).add_pod("backend"));
        let (backend, of_peer) = (backend?, of_peer?);
        for lab in [&own, &peer] {
            let via = lab.node(0).addresses()[0];
            lab.underlay().ip(&format!("route add {external} via {via}\n"))?;
        }
        let mut objects = objects(cluster_ip(family), backend.address(), connections());
        objects[0]["spec"]["externalIPs"] = json!([external]);
        write(&file, &objects)?;
        let ports = connections().chain([READY_PORT]);
        peer.node(0).exec(&["nft", &kube_proxy_rules(external, of_peer.address(), ports)])?;
        wait(own.world(), &backend, external)?;
        wait(peer.world(), &of_peer, external)?;
        let sites = [
            Site::of_service(KUBE_PROXY, peer.world(), &of_peer, external),
            Site::of_service(SERVICE, own.world(), &backend, external),
        ];
        let figure = format!("service-outside-{name}-connect");
        let comparison = connect(&figure, &sites, effort)?;
        let target = Some(Target::AtLeast(1.2));
        comparison.record(&figure, SERVICE, KUBE_PROXY, Ratio::Plain, target, report)?;
        report.charts.push(comparison.chart());
    }
    Ok(())
}

/// Makes a lab with a host outside.
fn lab_outside(programs: &Programs, arguments: &[&str], family: Family) -> Result<Lab> {
    let builder = Lab::builder().node_file().families(family.families()).binaries(&programs.binaries);
    builder.agent_arguments(arguments).build()
}

/// Returns rules of nftables as those of kube-proxy: a map from address, protocol and port to a chain,
/// which marks the packet for masquerading and translates its destination.
fn kube_proxy_rules(external: IpAddr, pod: IpAddr, ports: impl Iterator<Item = u16>) -> String {
    let (table, of_type) = if pod.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let elements: Vec<_> = ports.map(|port| format!("{external} . tcp . {port} : goto external")).collect();
    format!(
        "table {table} outside {{
            chain endpoint {{ meta l4proto tcp dnat to {pod}; }}
            chain external {{ meta mark set meta mark or 0x4000; goto endpoint; }}
            map services {{
                type {of_type} . inet_proto . inet_service : verdict;
                elements = {{ {} }}
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                {table} daddr . meta l4proto . th dport vmap @services;
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                meta mark and 0x4000 == 0x4000 masquerade fully-random;
            }}
        }}",
        elements.join(", ")
    )
}

/// Measures connections per second at two sites.
fn connect(figure: &str, sites: &[Site; 2], effort: Effort) -> Result<Comparison> {
    let [mut first, mut second] = sites.each_ref().map(Connections::new);
    let contestants = vec![
        Contestant::new(&sites[0].name, || Ok([first.measure(effort.turn)?])),
        Contestant::new(&sites[1].name, || Ok([second.measure(effort.turn)?])),
    ];
    let [comparison] = Comparison::run_all([(figure, "connections/s")], effort, contestants)?;
    Ok(comparison)
}

/// Returns an address that no host has.
fn external_ip(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(203, 0, 113, 50).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x203, 0, 0, 0, 0, 0x50).into(),
    }
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
fn wait(client: &Ns, server: &Pod, service: IpAddr) -> Result<()> {
    let route = Route::translated(SocketAddr::new(service, READY_PORT), READY_PORT);
    let start = Instant::now();
    while traffic::tcp_exchange_on(client, server, route, 1).is_err() {
        ensure!(start.elapsed() < Duration::from_secs(60), "no agent serves {service}");
    }
    Ok(())
}
