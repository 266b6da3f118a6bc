//! 100 changes of EndpointSlices a second, beside 10,000 services: the time until the programs use a
//! service's new endpoint, and the cost for a flow.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xtask::lab::{Families, Lab, Node, Ns, Pod};

use super::population::{self, SliceChanges};
use super::{cluster_ip, objects, wait};
use crate::bench::Effort;
use crate::bench::agent_cost::on_core;
use crate::bench::beside::{CORE, Changes};
use crate::bench::client::{RoundTrips, Transport};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Record, Report, Target};
use crate::bench::site::{Family, Programs, Site};
use crate::bench::statistics::quantile;

const QUIET: &str = "podwire, quiet";
const CHANGES: &str = "podwire, 100 slice changes a second";
/// The length of a measurement of the flow in turns.
const TURNS: u32 = 5;
/// The time from the first change until the agents work on changes.
const BEGINNING: Duration = Duration::from_millis(500);
/// Changes of a service's endpoint in a round.
const MOVES: usize = 50;
/// The longest time, in milliseconds, until new connections reach the new endpoint.
const MOST_DELAY: f64 = 100.0;
/// The pause between two connections that ask which endpoint is in force.
const PAUSE: Duration = Duration::from_micros(500);
const PATIENCE: Duration = Duration::from_secs(10);
const MOVED: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 60);
const PORT: u16 = 80;

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let lab = cluster(programs)?;
    let client = lab.node(0).add_pod("client")?;
    let [one, other, server] = ["one", "other", "server"].map(|name| lab.node(1).add_pod(name));
    let (one, other, server) = (one?, other?, server?);
    let api = lab.api_server()?;
    let service = cluster_ip(Family::Ipv4);
    objects(service, server.address(), 10_000..=10_000).into_iter().for_each(|object| api.put(object));
    wait(&client, &server, service)?;

    let mut changes = SliceChanges::default();
    in_force(&lab, &mut changes, &client, &[one, other], effort, report)?;

    let site = Site::of_service(CHANGES, &client, &server, service);
    let pair = RoundTrips::start(&site, Transport::Udp)?;
    let turn = effort.turn * TURNS;
    let quiet = Contestant::new(QUIET, || Ok([pair.measure(turn)?.one_way]));
    let beside =
        Contestant::new(CHANGES, || Ok([beside_changes(&lab, &mut changes, || pair.measure(turn))?.one_way]));
    let figure = "service-scale-flow";
    let [comparison] = Comparison::run_all([(figure, "µs")], effort, vec![quiet, beside])?;
    let target = Some(Target::AtMost(1.03));
    comparison.record(figure, CHANGES, QUIET, Ratio::Plain, target, report)?;
    report.charts.push(comparison.chart());
    Ok(())
}

/// Makes two nodes whose agents know all nodes and services.
fn cluster(programs: &Programs) -> Result<Lab> {
    let builder = Lab::builder().families(Families::V4).cable(true).nodes(2).agents(false);
    let lab = builder.binaries(&programs.binaries).agent_arguments(&["--services", "on"]).build()?;
    population::populate(&lab)?;
    on_core(CORE, || lab.nodes().iter().try_for_each(Node::start_agent))?;
    Ok(lab)
}

/// Measures the time from a change of a service's only endpoint to the first connection that reaches
/// the new one.
fn in_force(
    lab: &Lab,
    changes: &mut SliceChanges,
    client: &Pod,
    backends: &[Pod; 2],
    effort: Effort,
    report: &mut Report,
) -> Result<()> {
    let api = lab.api_server()?;
    moved(backends[0].address()).into_iter().for_each(|object| api.put(object));
    let servers: Result<Vec<_>> =
        (0..).zip(backends).map(|(number, pod)| Server::start(pod, number)).collect();
    let servers = servers?;
    let mut delays = Vec::new();
    until_reached(client, 0)?;
    beside_changes(lab, changes, || {
        for number in 0..effort.rounds * MOVES {
            let to = (number + 1) % backends.len();
            let [_, slice] = moved(backends[to].address());
            let start = Instant::now();
            api.put(slice);
            until_reached(client, to as u8)?;
            delays.push(start.elapsed().as_secs_f64() * 1000.0);
            // The changes of other services come every 10 ms: begin at any time between two.
            thread::sleep(Duration::from_micros(number as u64 * 7919 % 50_000));
        }
        Ok(())
    })?;
    drop(servers);
    let [median, last] = [0.5, 0.99].map(|share| [quantile(&delays, share)]);
    report.records.push(Record::alone("service-scale-in-force", "ms", &median, None));
    report.records.push(Record::alone("service-scale-in-force-p99", "ms", &last, Some(MOST_DELAY)));
    Ok(())
}

/// Connects until the server with this number answers.
fn until_reached(client: &Pod, number: u8) -> Result<()> {
    let start = Instant::now();
    client.enter(|| {
        loop {
            let mut answer = [u8::MAX];
            let asked = TcpStream::connect_timeout(&SocketAddr::from((MOVED, PORT)), PATIENCE)
                .and_then(|mut stream| stream.read_exact(&mut answer));
            if asked.is_ok() && answer == [number] {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "server {number} is not reached: {asked:?}");
            thread::sleep(PAUSE);
        }
    })?
}

/// A server that sends its number to each client. It ends when it is dropped.
struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
    pod: Ns,
}

impl Server {
    fn start(pod: &Pod, number: u8) -> Result<Self> {
        let address = SocketAddr::new(pod.address(), PORT);
        let listener = pod.enter(|| TcpListener::bind(address))?.context("listen")?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = pod.spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    listener.accept()?.0.write_all(&[number])?;
                }
                Ok(())
            }
        });
        Ok(Self { address, stop, thread: Some(thread), pod: (**pod).clone() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // One more connection wakes the server up.
        let woken = self.pod.enter(|| TcpStream::connect_timeout(&self.address, PATIENCE));
        if let (Ok(Ok(_)), Some(thread)) = (woken, self.thread.take()) {
            drop(thread.join());
        }
    }
}

/// Returns a service, and its slice with this endpoint alone.
fn moved(backend: IpAddr) -> [Value; 2] {
    let metadata = |name| {
        let labels = json!({ "kubernetes.io/service-name": "moved" });
        json!({ "name": name, "namespace": "default", "labels": labels })
    };
    let ports = json!([{ "name": "http", "port": PORT, "protocol": "TCP" }]);
    [
        json!({
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": metadata("moved"),
            "spec": { "type": "ClusterIP", "clusterIP": MOVED, "clusterIPs": [MOVED], "ports": ports },
        }),
        json!({
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": metadata("moved-1"),
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": [{ "addresses": [backend], "conditions": { "ready": true } }],
        }),
    ]
}

/// Measures while slices of other services change. Fails if the agent did not follow.
fn beside_changes<T: Send>(
    lab: &Lab,
    changes: &mut SliceChanges,
    measure: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let api = lab.api_server()?;
    let change = |is_over: &AtomicBool| {
        while !is_over.load(Ordering::Relaxed) {
            changes.next(api);
        }
        Ok(())
    };
    // A slice's change writes a list and removes another.
    let rate = Changes { rate: SliceChanges::RATE, beginning: BEGINNING, collecting: Duration::ZERO };
    rate.beside(lab, change, measure)
}
