//! Every kind of client reaches every kind of service address, wherever the backend is: TCP, and UDP
//! whole and in fragments. Both ends' addresses are compared with a table.

mod expected;

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use podwire_common::reason::Path::{RelayIn, RelayOut, ServiceIn, ServiceOut};
use xtask::family_table;
use xtask::lab::{Lab, Mode, Ns, Pod};

use crate::FAMILIES;
use crate::backends::{Answer, Backends, Connection, ask_by_udp, ask_by_unconnected_udp};
use crate::check::{Counted, Counter};
use crate::commands::rows;
use crate::neighbour::{DISTANT, add_neighbour, beside, lead_to_first_node};
use crate::service::service;
use crate::services::{ENTRIES, OPEN_ENTRIES, POD_PORT, SERVICE_PORT, hears_refusals, serves, slice};
use crate::services_outside::{external, open, places};
use crate::sockets::{udp, unspecified, wait_until};

use expected::{Address, Cell, Client, PLACES, Place, TABLE};

/// The last part of the first service's addresses. The other services follow.
const FIRST: u8 = 0x60;
/// The networks of all addresses of services.
const ADDRESSES: [&str; 4] = ["10.96.0.0/24", "fd00:10:96::/112", "203.0.113.0/24", "2001:db8:203::/64"];
/// More bytes than any MTU here.
const STREAM: usize = 100_000;
/// A datagram that fits into a packet, and one that does not.
const DATAGRAM: usize = 1000;
const IN_FRAGMENTS: usize = 4000;
/// The largest packet of a pod with VXLAN.
const TUNNEL_MTU: u32 = 1450;

#[test]
fn every_client_reaches_every_address_with_vxlan() {
    Table::new(Mode::Vxlan).check();
}

#[test]
fn every_client_reaches_every_address_by_direct_routing() {
    Table::new(Mode::Direct).check();
}

/// A cell of the table with its row, in one family.
#[derive(Clone, Copy)]
struct Asked {
    client: Client,
    address: Address,
    place: Place,
    family: usize,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} to {:?} of {:?}", self.client, self.address, self.place)
    }
}

/// Returns the cells of a row that can be asked.
fn row(
    client: Client,
    address: Address,
    cells: [Cell; 6],
    family: usize,
) -> impl Iterator<Item = (Asked, Cell)> {
    PLACES
        .into_iter()
        .zip(cells)
        .filter(|(_, cell)| !matches!(cell, Cell::Same | Cell::NoWay))
        .map(move |(place, cell)| (Asked { client, address, place, family }, cell))
}

/// Returns the paths that a row must take. A row of a client outside has backends on the node that
/// translates, and backends elsewhere.
fn taken(client: Client, address: Address) -> &'static [Counter] {
    const BY_FIRST: &[Counter] = &[(0, ServiceIn), (0, ServiceOut), (0, RelayOut), (0, RelayIn)];
    const BY_SECOND: &[Counter] = &[(1, ServiceIn), (1, ServiceOut), (1, RelayOut), (1, RelayIn)];
    match (client, address) {
        (Client::World | Client::Neighbour, Address::ClusterIp) => &[],
        (Client::World | Client::Neighbour | Client::Pod | Client::Process, Address::NodePortThere) => {
            BY_SECOND
        }
        (Client::World | Client::Neighbour, _) => BY_FIRST,
        (Client::OtherPod | Client::OtherProcess, Address::NodePort) => BY_FIRST,
        _ => &[],
    }
}

/// Two nodes that serve a service for each backend.
struct Table {
    pods: [Pod; 4],
    neighbour: Ns,
    lab: Lab,
}

/// The pods, by node and name.
const PODS: [(usize, &str); 4] = [(0, "here"), (1, "there"), (0, "client"), (1, "other-client")];

impl Table {
    fn new(mode: Mode) -> Self {
        let builder = Lab::builder().mode(mode).agents(false);
        let lab = builder.agent_arguments(&["--services", "on"]).build().unwrap();
        let neighbour = add_neighbour(&lab).unwrap();
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        let pods = PODS.map(|(node, name)| lab.node(node).add_pod(name).unwrap());
        if mode == Mode::Vxlan {
            // The first answer that is larger than the links of pods would be lost.
            let lines = format!("route replace default via 2001:db8::1 dev eth0 mtu {TUNNEL_MTU}");
            lab.world().ip(&lines).unwrap();
        }
        lead_to_first_node(&lab, &neighbour, &ADDRESSES);
        let table = Self { pods, neighbour, lab };
        table.put_services();
        table
    }

    /// Returns the backends: name, namespace and addresses.
    fn backends(&self) -> [(&'static str, &Ns, Vec<IpAddr>); 8] {
        let pod = |index: usize| {
            let pod = &self.pods[index];
            (PODS[index].1, &**pod, pod.addresses().to_vec())
        };
        let neighbour = |family| self.own(Client::Neighbour, Address::NodePort, family);
        let node = |index: usize, name| (name, &**self.lab.node(index), self.lab.node(index).addresses());
        [
            pod(0),
            pod(1),
            node(0, "process"),
            node(1, "process-there"),
            ("outside", self.lab.world(), self.lab.world_addresses()),
            pod(2),
            pod(3),
            ("neighbour", &self.neighbour, FAMILIES.map(neighbour).to_vec()),
        ]
    }

    /// Returns the place of a client's backend among [`Self::backends`].
    fn index(client: Client, place: Place) -> usize {
        match (place, client) {
            (Place::Here, _) => 0,
            (Place::There, _) => 1,
            (Place::Process, _) | (Place::Itself, Client::Process) => 2,
            (Place::ProcessThere, _) | (Place::Itself, Client::OtherProcess) => 3,
            (Place::Outside, _) | (Place::Itself, Client::World) => 4,
            (Place::Itself, Client::Pod) => 5,
            (Place::Itself, Client::OtherPod) => 6,
            (Place::Itself, Client::Neighbour) => 7,
        }
    }

    fn put_services(&self) {
        let (api, backends) = (self.lab.api_server().unwrap(), self.backends());
        for (last, (name, _, addresses)) in (FIRST..).zip(&backends) {
            FAMILIES.iter().for_each(|family| api.put(slice(name, &addresses[*family..=*family], *family)));
            api.put(open(name, last));
        }
        for node in self.lab.nodes() {
            let entries = backends.len() as u32 * (ENTRIES + 3 * OPEN_ENTRIES);
            assert!(serves(node, entries), "{}", node.agent_log_tail(20));
            let is_complete = || {
                let rows = rows(node, &["services"]);
                rows.iter()
                    .all(|row| row["backends"].as_array().is_some_and(|of| of.len() == 1))
                    .then_some(())
            };
            assert!(wait_until(is_complete).is_some(), "{}", node.agent_log_tail(20));
        }
    }

    fn check(&self) {
        let mut failures = String::new();
        for family in FAMILIES {
            let running = self.serve(family);
            for (client, address, cells) in TABLE {
                let before = Counted::quiet(&self.lab);
                for (asked, cell) in row(client, address, cells, family) {
                    let destination = self.destination(asked);
                    family_table::record(&self.lab, &asked.to_string(), destination.ip()).unwrap();
                    for error in self.faults(asked, cell) {
                        writeln!(failures, "{asked}, {destination}: {error:#}").unwrap();
                    }
                }
                let grown = Counted::quiet(&self.lab).since(&before);
                if let Err(error) = grown.expect(taken(client, address), &[]) {
                    writeln!(failures, "{client:?} to {address:?}: {error:#}").unwrap();
                }
            }
            drop(running);
            for (client, address, cells) in TABLE {
                let served = row(client, address, cells, family).filter(|(_, cell)| *cell != Cell::Unserved);
                served.for_each(|(asked, _)| hears_refusals(self.namespace(client), self.destination(asked)));
            }
        }
        assert!(failures.is_empty(), "\n{failures}");
    }

    /// Starts all backends.
    fn serve(&self, family: usize) -> [Backends; 8] {
        self.backends().map(|(name, ns, addresses)| {
            // The refusals of the table are more than a kernel sends otherwise.
            ns.sysctl("net/ipv4/icmp_ratemask", "0").unwrap();
            ns.sysctl("net/ipv6/icmp/ratelimit", "0").unwrap();
            // A process that listens on all addresses would answer a datagram with the address of the
            // link by which it came.
            let mut backends = Backends::at(addresses[family]);
            backends.tcp(ns, name, POD_PORT);
            backends.udp(ns, name, POD_PORT);
            backends
        })
    }

    /// Returns what differs from a cell, by protocol.
    fn faults(&self, asked: Asked, cell: Cell) -> Vec<anyhow::Error> {
        let Asked { client, address, place, family } = asked;
        let from = self.namespace(client);
        let to = self.destination(asked);
        let name = self.backends()[Self::index(client, place)].0;
        let seen_as = match cell {
            Cell::Same | Cell::NoWay => unreachable!("the row has left it out"),
            Cell::Unserved => return self.expect_unserved(from, to).err().into_iter().collect(),
            Cell::Own => self.own(client, address, family),
            Cell::Node1 => self.lab.node(0).addresses()[family],
            Cell::Node2 => self.lab.node(1).addresses()[family],
            Cell::Gateway1 => self.lab.node(0).overlay_addresses()[family],
            Cell::Gateway2 => self.lab.node(1).overlay_addresses()[family],
        };
        let tcp = || {
            let mut connection = Connection::open(from, to)?;
            connection.echo(STREAM)?;
            Ok(connection.answer)
        };
        let as_expected = |answer: Result<Answer>| {
            let answer = answer?;
            ensure!(
                (answer.backend.as_str(), answer.seen.ip()) == (name, seen_as),
                "{answer:?}, expected {name} to see {seen_as}"
            );
            Ok(())
        };
        [tcp(), ask_by_unconnected_udp(from, to, DATAGRAM), ask_by_udp(from, to, IN_FRAGMENTS)]
            .into_iter()
            .zip(["TCP", "UDP", "UDP in fragments"])
            .filter_map(|(answer, protocol)| Some(as_expected(answer).err()?.context(protocol)))
            .collect()
    }

    fn namespace(&self, client: Client) -> &Ns {
        match client {
            Client::Pod => &self.pods[2],
            Client::Process => self.lab.node(0),
            Client::World => self.lab.world(),
            Client::Neighbour => &self.neighbour,
            Client::OtherPod => &self.pods[3],
            Client::OtherProcess => self.lab.node(1),
        }
    }

    /// Returns a client's own address.
    fn own(&self, client: Client, address: Address, family: usize) -> IpAddr {
        let node = |index: usize| self.lab.node(index).addresses()[family];
        match client {
            Client::Pod => self.pods[2].addresses()[family],
            Client::Process => node(0),
            Client::World => self.lab.world_addresses()[family],
            Client::Neighbour => {
                let link = usize::from(address == Address::NodePortThere);
                beside(node(link), link, DISTANT)
            }
            Client::OtherPod => self.pods[3].addresses()[family],
            Client::OtherProcess => node(1),
        }
    }

    /// Returns the destination of a client's packets.
    fn destination(&self, Asked { client, address, place, family }: Asked) -> SocketAddr {
        let last = FIRST + Self::index(client, place) as u8;
        let [external, balancer] = external(last).map(|addresses| addresses[family]);
        match address {
            Address::ClusterIp => (service(last)[family], SERVICE_PORT).into(),
            Address::NodePort => places(self.lab.node(0), last, family)[0],
            Address::NodePortThere => places(self.lab.node(1), last, family)[0],
            Address::ExternalIp => (external, SERVICE_PORT).into(),
            Address::Balancer => (balancer, SERVICE_PORT).into(),
        }
    }

    /// Succeeds when the first node's programs leave a client's packets alone.
    fn expect_unserved(&self, from: &Ns, to: SocketAddr) -> Result<()> {
        let before = Counted::quiet(&self.lab);
        udp(from, (unspecified(to.ip()), 0)).send_to(b"question", to)?;
        // The packet need not end anywhere, so do not wait for an error.
        let connects = from.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(1)))?;
        ensure!(connects.is_err(), "the service answers");
        Counted::quiet(&self.lab).since(&before).expect(&[], &[(0, ServiceIn), (0, RelayOut)])
    }
}
