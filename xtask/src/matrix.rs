//! The matrix: who reaches whom, how fast, and from which address.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use tabled::builder::Builder;
use tabled::settings::Style;

use crate::lab::{Lab, Ns, Pod, traffic};

const PORT: u16 = 8080;
/// Enough bytes for large segments.
const TCP_BYTES: u64 = 256 * 1024;
const UDP_BYTES: usize = 1200;

/// A row or a column of the matrix.
struct Place<'a> {
    name: String,
    ns: &'a Ns,
    /// An address of each family of the lab.
    addresses: Vec<IpAddr>,
    /// The addresses that the world must see as the source, in the same order.
    seen_by_world: Vec<IpAddr>,
    is_world: bool,
}

/// The result of a cell.
enum Cell {
    Itself,
    Reached { rtt: Duration, seen: IpAddr, expected: IpAddr, translated: bool },
    Failed(String),
}

/// Probes every pair of places, in each family of the lab. Returns the table of the results, and a
/// line for each wrong cell.
pub fn table(lab: &Lab, pods: &[Pod]) -> (String, Vec<String>) {
    let places = places(lab, pods);
    let mut table = Builder::default();
    table.push_record([String::new()].into_iter().chain(places.iter().map(|to| to.name.clone())));
    let mut wrong = Vec::new();
    for from in places.iter().filter(|place| !place.is_world) {
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
    (format!("{}\n", table.build().with(Style::rounded())), wrong)
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
        }
    });
    let nodes = lab.nodes().iter().map(|node| Place {
        name: node.name().to_owned(),
        ns: node,
        addresses: node.addresses(),
        seen_by_world: node.addresses(),
        is_world: false,
    });
    let world = Place {
        name: "world".to_owned(),
        ns: lab.world(),
        addresses: lab.world_addresses(),
        seen_by_world: lab.world_addresses(),
        is_world: true,
    };
    pods.chain(nodes).chain([world]).collect()
}

/// Probes a pair of places. `family` is the place in the order of the lab's families.
fn probe(from: &Place<'_>, to: &Place<'_>, family: usize) -> Cell {
    if from.addresses == to.addresses {
        return Cell::Itself;
    }
    match exchange(from, to, family) {
        Ok(cell) => cell,
        Err(error) => Cell::Failed(format!("{error:#}")),
    }
}

fn exchange(from: &Place<'_>, to: &Place<'_>, family: usize) -> Result<Cell> {
    let (own, address) = (from.addresses[family], to.addresses[family]);
    // The first ping only resolves the neighbours on the way.
    traffic::ping(from.ns, address, 56)?;
    let rtt = traffic::ping(from.ns, address, 56)?.rtt;
    let tcp = traffic::tcp_exchange(from.ns, to.ns, address, PORT, TCP_BYTES)?;
    let udp = traffic::udp_exchange(from.ns, to.ns, address, PORT, UDP_BYTES)?;
    let expected = if to.is_world { from.seen_by_world[family] } else { own };
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
                format!("{:.3} ms{nat}{wrong}", rtt.as_secs_f64() * 1000.0)
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
