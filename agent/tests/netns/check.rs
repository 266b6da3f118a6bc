//! Rows of a table of paths: TCP, UDP and ICMP, whole and in fragments, checked at both ends and in
//! the counters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use podwire_common::abi::Count;
use podwire_common::names::maps;
use podwire_common::reason::{Drop as Reason, Path};
use xtask::family_table;
use xtask::lab::traffic::{self, Exchange, Route};
use xtask::lab::{Lab, Node, Ns};

use crate::icmp_errors::path_mtu;

const PORT: u16 = 8080;
const STREAM: u64 = 1 << 20;
const DATAGRAM: usize = 1000;
/// The largest datagram of IPv4, which takes many fragments.
const LARGEST_DATAGRAM: usize = 65_507;
const ECHO: usize = 56;
const ECHO_IN_FRAGMENTS: usize = 20_000;

/// A counter of a node (from 0).
pub type Counter = (usize, Path);

/// A client, a server, and what both ends and the counters must show.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    pub name: &'a str,
    pub client: &'a Ns,
    pub server: &'a Ns,
    /// The address to which the client sends.
    pub destination: IpAddr,
    /// The client's address as the server must see it.
    pub seen_as: IpAddr,
    /// Paths that must grow with every protocol.
    pub takes: &'a [Counter],
    /// Paths that must not grow.
    pub avoids: &'a [Counter],
    /// Whether an end learns only from an error how large its IPv6 packets may be. IPv4 packets are
    /// fragmented on the way.
    pub learns_mtu: bool,
}

impl<'a> Row<'a> {
    /// Returns a row: the client, with its own address, sends to the server's own address.
    pub fn new(name: &'a str, client: (&'a Ns, IpAddr), server: (&'a Ns, IpAddr)) -> Self {
        Self {
            name,
            client: client.0,
            server: server.0,
            destination: server.1,
            seen_as: client.1,
            takes: &[],
            avoids: &[],
            learns_mtu: false,
        }
    }

    /// Sets a destination that is translated to the server's address on the way.
    pub fn by_way_of(self, destination: IpAddr) -> Self {
        Self { destination, ..self }
    }

    /// Sets the source into which the client's address is translated on the way.
    pub fn seen_as(self, seen_as: IpAddr) -> Self {
        Self { seen_as, ..self }
    }

    /// Says that with IPv6 the first packet, or its answer, that is larger than the path takes is
    /// lost.
    pub fn learns_mtu(self) -> Self {
        Self { learns_mtu: true, ..self }
    }

    pub fn takes(self, takes: &'a [Counter]) -> Self {
        Self { takes, ..self }
    }

    pub fn avoids(self, avoids: &'a [Counter]) -> Self {
        Self { avoids, ..self }
    }
}

/// Asserts that every protocol of every row behaves as the row says. Fails with a list of those
/// that do not, each with the counts of its exchange.
#[track_caller]
pub fn check(lab: &Lab, rows: &[Row<'_>]) {
    let mut failures = String::new();
    for row in rows {
        family_table::record(lab, row.name, row.destination).unwrap();
        let route = Route::translated(SocketAddr::new(row.destination, PORT), PORT);
        let udp = |size| traffic::udp_exchange_on(row.client, row.server, route, size);
        let mut protocol = |protocol: &str, exchange: &dyn Fn() -> Result<IpAddr>| {
            if let Err(error) = watched(lab, row, exchange) {
                writeln!(failures, "{} at {}, {protocol}: {error:#}", row.name, row.destination).unwrap();
            }
        };
        protocol("TCP", &|| peer(traffic::tcp_exchange_on(row.client, row.server, route, STREAM)));
        protocol("UDP", &|| peer(udp(DATAGRAM)));
        if row.learns_mtu && row.destination.is_ipv6() {
            // An end that is told of a request that is too large stops the ping; a lost answer does
            // not.
            let learnt = || path_mtu(row.server, row.seen_as).or(path_mtu(row.client, row.destination));
            assert_eq!(learnt(), None, "{}", row.name);
            drop(traffic::ping(row.client, row.destination, ECHO_IN_FRAGMENTS));
            assert!(learnt().is_some(), "{}: the packets were no larger than the path takes", row.name);
        }
        protocol("UDP in fragments", &|| peer(udp(LARGEST_DATAGRAM)));
        protocol("ICMP", &|| echo(row, ECHO));
        protocol("ICMP in fragments", &|| echo(row, ECHO_IN_FRAGMENTS));
    }
    assert!(failures.is_empty(), "\n{failures}");
}

fn watched(lab: &Lab, row: &Row<'_>, exchange: &dyn Fn() -> Result<IpAddr>) -> Result<()> {
    let before = Counted::quiet(lab);
    let seen = exchange();
    let grown = Counted::quiet(lab).since(&before);
    let seen = seen.with_context(|| grown.to_string())?;
    ensure!(seen == row.seen_as, "the server saw {seen} and not {}; {grown}", row.seen_as);
    grown.expect(row.takes, row.avoids)
}

fn peer(exchange: Result<Exchange>) -> Result<IpAddr> {
    Ok(exchange?.peer_seen_by_server.ip())
}

fn echo(row: &Row<'_>, size: usize) -> Result<IpAddr> {
    let requests = EchoRequests::start(row.server)?;
    let answered = traffic::ping(row.client, row.destination, size);
    let seen = requests.first_source(answered.is_ok());
    answered?;
    seen
}

/// Returns a node's drops, by reason, without the group reports that an IPv6 stack sends at times of
/// its own. Without IPv6 in the lab, a test has sent them.
pub fn drops(node: &Node) -> BTreeMap<&'static str, u64> {
    let counts = counts(node, maps::DROPS);
    let mut drops = occurred(Reason::ALL.iter().map(|reason| (reason.name(), counts[*reason as usize])));
    if node.addresses().iter().any(IpAddr::is_ipv6) {
        drops.remove(Reason::NeighbourChatter.name());
    }
    drops
}

/// Reads a map of counts, and returns the packets in each slot. bpftool would show the same, but
/// tests read the counts so often that starting a process each time would take longer than their
/// packets.
fn counts(node: &Node, map: &str) -> Vec<u64> {
    let data = MapData::from_pin(node.bpf_dir().join(map)).unwrap();
    let slots: PerCpuArray<_, Count> = Map::PerCpuArray(data).try_into().unwrap();
    let packets = |slot| slots.get(&slot, 0).unwrap().iter().map(|count| count.packets).sum();
    (0..slots.len()).map(packets).collect()
}

fn occurred(counts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<&'static str, u64> {
    counts.filter(|(_, count)| *count > 0).collect()
}

/// The counts of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    traffic: Vec<BTreeMap<&'static str, u64>>,
    drops: Vec<BTreeMap<&'static str, u64>>,
}

impl Counted {
    /// Reads the counts now. A node that never had an agent has counted nothing.
    pub fn now(lab: &Lab) -> Self {
        let traffic = |node: &Node| {
            let counts = counts(node, maps::TRAFFIC);
            occurred(Path::ALL.iter().map(|path| (path.name(), counts[*path as usize])))
        };
        let read = |node: &Node| match node.bpf_dir().exists() {
            true => (traffic(node), drops(node)),
            false => Default::default(),
        };
        let (traffic, drops) = lab.nodes().iter().map(read).unzip();
        Self { traffic, drops }
    }

    /// Waits until no more packets come, and reads the counts. They then include the last
    /// acknowledgements of earlier traffic.
    pub fn quiet(lab: &Lab) -> Self {
        let (start, mut last) = (Instant::now(), Self::now(lab));
        while start.elapsed() < Duration::from_secs(30) {
            std::thread::sleep(Duration::from_millis(5));
            let next = Self::now(lab);
            if next == last {
                return last;
            }
            last = next;
        }
        panic!("packets still arrive after 30 seconds; since the beginning {last}")
    }

    /// Returns the counts that have grown.
    pub fn since(&self, before: &Self) -> Self {
        let difference = |after: &[BTreeMap<_, u64>], before: &[BTreeMap<_, u64>]| {
            let grown = |(after, before): (&BTreeMap<&'static str, u64>, &BTreeMap<&'static str, u64>)| {
                let by = |name| after[name] - before.get(name).copied().unwrap_or_default();
                after.keys().map(|name| (*name, by(*name))).filter(|(_, by)| *by > 0).collect()
            };
            after.iter().zip(before).map(grown).collect()
        };
        Self {
            traffic: difference(&self.traffic, &before.traffic),
            drops: difference(&self.drops, &before.drops),
        }
    }

    /// Returns the packets of a path on a node (from 0).
    pub fn packets(&self, (node, path): Counter) -> u64 {
        self.traffic[node].get(path.name()).copied().unwrap_or_default()
    }

    /// Returns the drops of a node (from 0), by reason.
    pub fn drops(&self, node: usize) -> &BTreeMap<&'static str, u64> {
        &self.drops[node]
    }

    /// Fails unless this difference has the paths `takes`, none of `avoids`, and no drop.
    pub fn expect(&self, takes: &[Counter], avoids: &[Counter]) -> Result<()> {
        for counter in takes {
            ensure!(
                self.packets(*counter) > 0,
                "{} of node{} did not grow; {self}",
                counter.1.name(),
                counter.0 + 1
            );
        }
        for counter in avoids {
            ensure!(
                self.packets(*counter) == 0,
                "{} of node{} grew; {self}",
                counter.1.name(),
                counter.0 + 1
            );
        }
        ensure!(self.drops.iter().all(BTreeMap::is_empty), "packets were dropped; {self}");
        Ok(())
    }
}

impl std::fmt::Display for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("counted:")?;
        for (index, (traffic, drops)) in self.traffic.iter().zip(&self.drops).enumerate() {
            write!(f, " node{} {traffic:?} drops {drops:?}", index + 1)?;
        }
        Ok(())
    }
}

/// A capture of the echo requests that a namespace receives. A ping's answer does not tell which
/// source the other end saw.
struct EchoRequests {
    tcpdump: Child,
}

impl EchoRequests {
    fn start(ns: &Ns) -> Result<Self> {
        let mut command = Command::new("tcpdump");
        // The last two: an IPv6 request alone, and behind the fragment header (RFC 8200 section 4.5).
        let requests = "icmp[icmptype] = icmp-echo or (ip6[6] = 58 and ip6[40] = 128) or (ip6[6] = 44 and ip6[40] = 58 and ip6[48] = 128)";
        command.args(["-i", "any", "-n", "-l", "-c", "1", "--immediate-mode", requests]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tcpdump = ns.enter(|| command.spawn())?.context("run tcpdump")?;
        let mut lines = BufReader::new(tcpdump.stderr.take().context("tcpdump has no standard error")?);
        let mut line = String::new();
        while !line.starts_with("listening") {
            line.clear();
            ensure!(lines.read_line(&mut line)? > 0, "tcpdump did not start");
        }
        Ok(Self { tcpdump })
    }

    /// Returns the source of the first echo request. Waits for it only if one is expected.
    fn first_source(mut self, expected: bool) -> Result<IpAddr> {
        ensure!(expected, "no echo request was answered");
        let mut printed = String::new();
        self.tcpdump.stdout.take().context("tcpdump has no output")?.read_to_string(&mut printed)?;
        // `12:00:00.000000 eth0  In  IP 10.244.1.2 > 10.244.2.2: ICMP echo request, ...`
        let mut words = printed.split_whitespace().skip_while(|word| !matches!(*word, "IP" | "IP6"));
        let source = words.nth(1);
        source.with_context(|| format!("tcpdump printed {printed:?}"))?.parse().context("parse a source")
    }
}

impl Drop for EchoRequests {
    fn drop(&mut self) {
        drop(self.tcpdump.kill());
        drop(self.tcpdump.wait());
    }
}
