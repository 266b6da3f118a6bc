//! The matrix: who reaches whom, how fast, and from which address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tabled::builder::Builder;
use tabled::settings::Style;

use crate::lab::traffic::{self, Route};
use crate::lab::{Lab, Ns, Pod};

const PORT: u16 = 8080;
/// Enough bytes for large segments.
const TCP_BYTES: u64 = 256 * 1024;
const UDP_BYTES: usize = 1200;

/// The ClusterIP of the service, of each family, and its port.
const SERVICE: ([IpAddr; 2], u16) = (
    [
        IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa)),
    ],
    80,
);
/// The longest wait until the agents serve it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A row or a column of the matrix.
struct Place<'a> {
    name: String,
    ns: &'a Ns,
    /// An address of each family of the lab.
    addresses: Vec<IpAddr>,
    /// The addresses that the world must see as the source, in the same order. For a service, the
    /// gateways of its backend.
    seen_by_world: Vec<IpAddr>,
    is_world: bool,
    /// The service's ClusterIPs, in the same order. Its backend is `ns`.
    cluster_ips: Option<Vec<SocketAddr>>,
}

/// The result of a cell.
enum Cell {
    Itself,
    Reached { rtt: Option<Duration>, seen: IpAddr, expected: IpAddr, translated: bool },
    Failed(String),
}

/// Probes every pair of places, in each family of the lab, and from every place a service whose backend
/// is the last pod. The lab has a file of services. Returns the table of the results, and a line for
/// each wrong cell.
///
/// # Errors
/// When the agents do not serve the service in time.
pub fn table(lab: &Lab, pods: &[Pod]) -> Result<(String, Vec<String>)> {
    let mut places = places(lab, pods);
    if let Some(backend) = pods.last() {
        let cluster_ips = serve(lab, backend)?;
        let of_backend = &places[pods.len() - 1];
        let name = format!("service → {}", of_backend.name);
        let addresses = of_backend.addresses.clone();
        let gateways = lab.nodes().last().map(|node| node.overlay_addresses()).unwrap_or_default();
        places.push(Place {
            name,
            ns: backend,
            addresses,
            seen_by_world: gateways,
            is_world: false,
            cluster_ips: Some(cluster_ips),
        });
    }
    let mut table = Builder::default();
    table.push_record([String::new()].into_iter().chain(places.iter().map(|to| to.name.clone())));
    let mut wrong = Vec::new();
    for from in places.iter().filter(|place| !place.is_world && place.cluster_ips.is_none()) {
        for (family, address) in from.addresses.iter().enumerate() {
            let row = match from.addresses.len() {
                1 => from.name.clone(),
                _ => format!("{}, {}", from.name, if address.is_ipv4() { "IPv4" } else { "IPv6" }),
            };
            let cells: Vec<Cell> = places.iter().map(|to| probe(from, to, family)).collect();
            table.push_record([row.clone()].into_iter().chain(cells.iter().map(Cell::text)));
            for (cell, to) in cells.iter().zip(&places) {
                wrong.extend(cell.complaint().map(|complaint| format!("{row} → {}: {complaint}", to.name)));
            }
        }
    }
    Ok((format!("{}\n", table.build().with(Style::rounded())), wrong))
}

/// Gives the agents a service with this backend, and waits until they serve it. Returns its addresses.
fn serve(lab: &Lab, backend: &Pod) -> Result<Vec<SocketAddr>> {
    let cluster_ip = |of: &IpAddr| SERVICE.0[usize::from(of.is_ipv6())];
    let cluster_ips: Vec<_> = backend.addresses().iter().map(cluster_ip).collect();
    let port = |number: u16, protocol: &str| json!({ "name": protocol.to_lowercase(), "port": number, "protocol": protocol });
    let ports = |number| ["TCP", "UDP"].map(|protocol| port(number, protocol));
    let metadata = |name: &str| json!({ "namespace": "demo", "name": name, "labels": { "kubernetes.io/service-name": "d" } });
    let slice = |address: &IpAddr| {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "metadata": metadata(&family.to_lowercase()),
            "addressType": family, "ports": ports(PORT), "endpoints": [{ "addresses": [address] }],
        })
    };
    let spec = json!({ "clusterIPs": cluster_ips, "ports": ports(SERVICE.1) });
    let service = json!({ "kind": "Service", "apiVersion": "v1", "metadata": metadata("d"), "spec": spec });
    let items: Vec<Value> = [service].into_iter().chain(backend.addresses().iter().map(slice)).collect();
    lab.write_services(&json!({ "kind": "List", "items": items }).to_string())?;
    let begun = Instant::now();
    for node in lab.nodes() {
        let is_served = || -> Result<bool> {
            let printed = String::from_utf8(node.show(&["services"])?.stdout)?;
            Ok(backend.addresses().iter().all(|address| printed.contains(&address.to_string())))
        };
        while !is_served()? {
            if begun.elapsed() > PATIENCE {
                bail!("{} does not serve the service", node.name());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(cluster_ips.into_iter().map(|address| SocketAddr::new(address, SERVICE.1)).collect())
}

fn places<'a>(lab: &'a Lab, pods: &'a [Pod]) -> Vec<Place<'a>> {
    let per_node = pods.len() / lab.nodes().len();
    let pods = pods.iter().enumerate().map(|(index, pod)| {
        let node = lab.node(index / per_node);
        let letter = pod.name().rsplit('-').next().unwrap_or_default();
        Place {
            name: format!("pod {letter} ({})", node.name()),
            ns: pod,
            addresses: pod.addresses().to_vec(),
            seen_by_world: node.addresses(),
            is_world: false,
            cluster_ips: None,
        }
    });
    let nodes = lab.nodes().iter().map(|node| Place {
        name: node.name().to_owned(),
        ns: node,
        addresses: node.addresses(),
        seen_by_world: node.addresses(),
        is_world: false,
        cluster_ips: None,
    });
    let world = Place {
        name: "world".to_owned(),
        ns: lab.world(),
        addresses: lab.world_addresses(),
        seen_by_world: lab.world_addresses(),
        is_world: true,
        cluster_ips: None,
    };
    pods.chain(nodes).chain([world]).collect()
}

/// Probes a pair of places. `family` is the place in the order of the lab's families.
fn probe(from: &Place<'_>, to: &Place<'_>, family: usize) -> Cell {
    if from.addresses == to.addresses && to.cluster_ips.is_none() {
        return Cell::Itself;
    }
    match exchange(from, to, family) {
        Ok(cell) => cell,
        Err(error) => Cell::Failed(format!("{error:#}")),
    }
}

fn exchange(from: &Place<'_>, to: &Place<'_>, family: usize) -> Result<Cell> {
    let (own, address) = (from.addresses[family], to.addresses[family]);
    let (rtt, route) = match &to.cluster_ips {
        // A service answers no ping.
        Some(cluster_ips) => (None, Route::translated(cluster_ips[family], PORT)),
        None => {
            // The first ping only resolves the neighbours on the way.
            traffic::ping(from.ns, address, 56)?;
            (Some(traffic::ping(from.ns, address, 56)?.rtt), Route::to(address, PORT))
        }
    };
    let tcp = traffic::tcp_exchange_on(from.ns, to.ns, route, TCP_BYTES)?;
    let udp = traffic::udp_exchange_on(from.ns, to.ns, route, UDP_BYTES)?;
    let expected = match &to.cluster_ips {
        None if to.is_world => from.seen_by_world[family],
        // A pod that reaches itself by a service sees its gateway as the client.
        Some(_) if from.addresses == to.addresses => to.seen_by_world[family],
        _ => own,
    };
    let seen = [tcp, udp].map(|exchange| exchange.peer_seen_by_server.ip());
    let seen = seen.into_iter().find(|seen| *seen != expected).unwrap_or(expected);
    Ok(Cell::Reached { rtt, seen, expected, translated: seen != own })
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Cell::Itself => "·".to_owned(),
            Cell::Reached { rtt, translated, .. } => {
                let nat = if *translated { " NAT" } else { "" };
                let wrong = if self.complaint().is_some() { " WRONG" } else { "" };
                let time = rtt.map(|rtt| format!("{:.3} ms", rtt.as_secs_f64() * 1000.0));
                format!("{}{nat}{wrong}", time.as_deref().unwrap_or("reached"))
            }
            Cell::Failed(_) => "not reached".to_owned(),
        }
    }

    fn complaint(&self) -> Option<String> {
        match self {
            Cell::Reached { seen, expected, .. } if seen != expected => {
                Some(format!("the server saw {seen} and should have seen {expected}"))
            }
            Cell::Failed(error) => Some(error.clone()),
            _ => None,
        }
    }
}
