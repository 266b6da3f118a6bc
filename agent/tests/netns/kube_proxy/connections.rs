//! Many flows, long flows, and the flows that connection tracking knows.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podwire_common::names::{VXLAN_PORT, maps};
use xtask::lab::traffic::bound;
use xtask::lab::{Ns, Pod, is_soak};

use super::Cluster;
use crate::backends::{Connection, ask_by_udp};
use crate::sockets::{UdpSocket, unspecified};

const IN_A_ROW: usize = 1000;
const IN_A_ROW_SOAK: usize = 20_000;
/// So many connections that a random choice gives each of three backends some of them.
const ENOUGH: usize = 40;
/// While long connections are silent: how many direct flows come and go, how often the long
/// connections speak again, and how long they are silent at least.
const IDLE: (usize, usize, Duration) = (20_000, 4, Duration::ZERO);
/// The silence is longer than the agent waits before it asks connection tracking about a flow.
const IDLE_SOAK: (usize, usize, Duration) = (2_000_000, 1, Duration::from_secs(75));
/// The source ports of those flows. `AT_ONCE` of them wait for an answer at the same time: a
/// socket's buffer has room for that.
const SOURCE_PORTS: std::ops::Range<u16> = 30_000..55_000;
const AT_ONCE: usize = 100;

#[test]
fn a_thousand_connections_in_a_row_to_a_service_succeed() {
    Cluster::each(|cluster| {
        let _backends = cluster.serve();
        let client = cluster.pod("client-1");
        for number in 0..if is_soak() { IN_A_ROW_SOAK } else { IN_A_ROW } {
            let outcome = Connection::open(client, cluster.services().web_tcp())
                .and_then(|mut connection| connection.echo(2000));
            outcome.with_context(|| format!("connection {number}")).unwrap();
        }
    });
}

#[test]
fn conntrack_holds_service_flows_and_nothing_that_goes_direct() {
    Cluster::each(|cluster| {
        let (_backends, services) = (cluster.serve(), cluster.services());
        let client = cluster.pod("client-1");
        let mut through_service: Vec<Connection> =
            (0..ENOUGH).map(|_| Connection::open(client, cluster.services().web_tcp()).unwrap()).collect();
        let used = through_service.iter().map(|connection| connection.answer.client.port()).collect();
        let backends = cluster.site.web.iter();
        let mut direct: Vec<Connection> = backends
            .map(|name| SocketAddr::new(cluster.address(name), 8080))
            .map(|backend| open_from_another_port(client, backend, &used))
            .collect();
        for connection in through_service.iter_mut().chain(&mut direct) {
            connection.echo(100_000).unwrap();
        }
        let datagram = ask_by_udp(client, services.web_udp(), 4000).unwrap();
        // This pod has asked no service. So its direct flows share no port with a service's flow.
        let other = cluster.pod("dns");
        let near_and_far = ["web-1", "web-2"].map(|name| SocketAddr::new(cluster.address(name), 8081));
        let direct_datagrams =
            near_and_far.map(|backend| (backend, ask_by_udp(other, backend, 4000).unwrap()));

        let [here, there] = [0, 1].map(|node| Tracked::by(cluster.lab.node(node)));
        for Connection { answer, .. } in &through_service {
            let entry = here.find(answer.client, services.web_tcp()).unwrap();
            assert!(entry.contains("ESTABLISHED") && entry.contains("[ASSURED]"), "{entry}");
            assert_eq!(
                there.find(answer.client, services.web_tcp()),
                None,
                "the flow has passed the stack of the backend's node"
            );
        }
        let entry = here.find(datagram.client, services.web_udp()).unwrap();
        assert!(!entry.contains("[UNREPLIED]"), "{entry}");
        let direct = direct.iter().map(|connection| (connection.server, connection.answer.clone()));
        for (server, answer) in direct.chain(direct_datagrams) {
            for tracked in [&here, &there] {
                assert_eq!(tracked.find(answer.client, server), None, "a request that went direct");
                assert_eq!(tracked.find(server, answer.client), None, "an answer that went direct");
            }
        }
    });
}

#[test]
fn idle_connections_through_a_service_outlive_many_direct_flows() {
    Cluster::each(|cluster| {
        let _backends = cluster.serve();
        let client = cluster.pod("client-1");
        let clients: [&Ns; 3] = [client, cluster.pod("client-2"), cluster.lab.node(0)];
        let mut connections: Vec<Connection> = clients
            .into_iter()
            .flat_map(|client| {
                (0..ENOUGH).map(move |_| Connection::open(client, cluster.services().web_tcp()).unwrap())
            })
            .collect();
        let (flows, pauses, silence) = if is_soak() { IDLE_SOAK } else { IDLE };
        let servers = ["client-2", "dns"].map(|name| (cluster.pod(name), cluster.address(name)));
        let mut places = servers.into_iter().cycle().zip(10_000..);
        for _ in 0..pauses {
            let (start, mut seen) = (Instant::now(), 0);
            while seen < flows / pauses || start.elapsed() < silence {
                let (server, port) = places.next().unwrap();
                let count = (flows / pauses).min(SOURCE_PORTS.len());
                direct_flows(client, server, port, count).unwrap();
                seen += count;
            }
            for connection in &mut connections {
                connection.echo(10_000).unwrap();
            }
        }
        for node in cluster.lab.nodes() {
            let stack_flows = node.map_dump(maps::STACK_FLOWS).unwrap();
            let stack_flows = stack_flows.as_array().unwrap().len();
            // The VXLAN device takes inner IPv6, so the stack sees the tunnel's packets.
            let is_inner = |entry: &&String| !entry.contains(&format!(" dport={VXLAN_PORT} "));
            let tracked = Tracked::by(node).entries.iter().filter(is_inner).count();
            assert!(stack_flows < flows / 10, "{stack_flows} stack flows on {}", node.name());
            assert!(tracked < flows / 10, "{tracked} flows are tracked on {}", node.name());
        }
    });
}

/// The entries of a node's connection tracking, as `conntrack -L` prints them.
struct Tracked {
    entries: Vec<String>,
}

impl Tracked {
    fn by(node: &Ns) -> Self {
        let printed = ["ipv4", "ipv6"].map(|family| node.exec(&["conntrack", "-L", "-f", family]).unwrap());
        let printed = printed.concat();
        Self { entries: printed.lines().map(str::to_owned).collect() }
    }

    /// Returns the entry of a flow by the ends of its first packet. No two protocols here have a
    /// destination in common.
    fn find(&self, from: SocketAddr, to: SocketAddr) -> Option<&str> {
        let tuple = format!(" src={} dst={} sport={} dport={} ", from.ip(), to.ip(), from.port(), to.port());
        // The reply's tuple comes second.
        let is_first =
            |entry: &&String| entry.find(" src=").is_some_and(|start| entry[start..].starts_with(&tuple));
        self.entries.iter().find(is_first).map(String::as_str)
    }
}

/// Connects from a port that is none of these. A pod that reaches a backend through its service and
/// directly from the same port takes the stack both times.
fn open_from_another_port(from: &Ns, to: SocketAddr, ports: &BTreeSet<u16>) -> Connection {
    loop {
        let connection = Connection::open(from, to).unwrap();
        if !ports.contains(&connection.answer.client.port()) {
            return connection;
        }
    }
}

/// Makes flows to one port, each from a port of its own, with a datagram and its answer.
fn direct_flows(from: &Pod, (to, address): (&Pod, IpAddr), port: u16, count: usize) -> Result<()> {
    let server = to.enter(|| bind(unspecified(address), port))??;
    let server = std::thread::spawn(move || -> Result<()> {
        let mut datagram = [0; 100];
        for _ in 0..count {
            let (length, peer) = server.recv_from(&mut datagram).context("a question")?;
            server.send_to(&datagram[..length], peer)?;
        }
        Ok(())
    });
    let sources: Vec<u16> = SOURCE_PORTS.take(count).collect();
    for sources in sources.chunks(AT_ONCE) {
        from.enter(|| ask_from_each(sources, SocketAddr::new(address, port)))??;
    }
    server.join().expect("the server's thread")
}

fn ask_from_each(sources: &[u16], destination: SocketAddr) -> Result<()> {
    let sockets: Vec<UdpSocket> =
        sources.iter().map(|source| bind(unspecified(destination.ip()), *source)).collect::<Result<_>>()?;
    for socket in &sockets {
        socket.send_to(b"who?", destination)?;
    }
    for socket in &sockets {
        socket.recv(&mut [0; 100]).context("an answer")?;
    }
    Ok(())
}

fn bind(address: IpAddr, port: u16) -> Result<UdpSocket> {
    Ok(bound(|| UdpSocket::bind((address, port)))?)
}
