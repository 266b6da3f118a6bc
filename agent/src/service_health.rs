//! What a service proxy answers to load balancers over HTTP, as kube-proxy of Kubernetes 1.36 does:
//! at the `healthCheckNodePort` of each service that has one, and `/healthz` and `/livez` for the
//! node as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use podwire_core::model::Family;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::config::Config;
use crate::connections::Connections;
use crate::events::{Event, ServiceHealth};
use crate::health::{self, Present};

/// Pause before a port that could not be opened is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// Largest number of connections open at once at all ports together. Every host may ask.
const CONNECTIONS: usize = 64;
/// kube-proxy's header with the number of local endpoints: load balancers may use it as a weight.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Returns how many files the health checks may open: each of the cluster's NodePorts may have a
/// socket of each family.
pub fn descriptors(config: &Config) -> u64 {
    let ports = u64::from(config.node_ports.last - config.node_ports.first) + 1;
    config.service_health_address.map_or(0, |_| 2 * ports + CONNECTIONS as u64)
}

/// A running server of all ports.
struct Server {
    /// `--service-health-address`.
    address: SocketAddr,
    sources: Sources,
    connections: Connections,
    open: BTreeMap<SocketAddr, JoinHandle<()>>,
}

/// What answers follow from.
#[derive(Clone)]
struct Sources {
    health: watch::Receiver<ServiceHealth>,
    events: mpsc::Sender<Event>,
}

/// Opens and closes ports as services come and go, and answers there. Reports the ports that cannot
/// be opened, and tries them again. Ends when the sender of the health is gone.
///
/// `address`: serves `/healthz` and `/livez`.
pub async fn serve(
    address: SocketAddr,
    mut health: watch::Receiver<ServiceHealth>,
    events: mpsc::Sender<Event>,
) {
    let sources = Sources { health: health.clone(), events: events.clone() };
    let connections = Connections::new(CONNECTIONS);
    let mut server = Server { address, sources, connections, open: BTreeMap::new() };
    let mut told = BTreeMap::new();
    loop {
        let wanted = wanted(address, &health.borrow_and_update());
        let failed = server.adjust(&wanted).await;
        let is_complete = failed.is_empty();
        if failed != told {
            told.clone_from(&failed);
            if events.send(Event::HealthPorts(failed)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = sleep(PAUSE), if !is_complete => {}
        }
    }
}

/// Returns the addresses at which the agent should listen, and for what.
fn wanted(address: SocketAddr, health: &ServiceHealth) -> BTreeMap<SocketAddr, String> {
    let any = |family| match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let of_services = health.checks.iter().flat_map(|(name, check)| {
        let address = move |family| SocketAddr::new(any(family), check.port.get());
        check.local_ready.keys().map(move |family| (address(*family), name.to_string()))
    });
    of_services.chain([(address, "this node".to_owned())]).collect()
}

impl Server {
    /// Closes the ports that are no longer wanted and opens those that are missing. Returns why
    /// some could not be opened.
    async fn adjust(&mut self, wanted: &BTreeMap<SocketAddr, String>) -> BTreeMap<SocketAddr, String> {
        for (_, task) in self.open.extract_if(.., |address, _| !wanted.contains_key(address)) {
            // The port is free when the task has ended.
            task.abort();
            let _ = task.await;
        }
        let mut failed = BTreeMap::new();
        let open: BTreeSet<_> = self.open.keys().copied().collect();
        for (address, of) in wanted.iter().filter(|(address, _)| !open.contains(address)) {
            match self.listen(*address) {
                Ok(task) => drop(self.open.insert(*address, task)),
                Err(error) => {
                    let why = format!("cannot answer health checks of {of} at {address}: {error}");
                    failed.insert(*address, why);
                }
            }
        }
        failed
    }

    fn listen(&self, address: SocketAddr) -> io::Result<JoinHandle<()>> {
        let (listener, router) = if address == self.address {
            let router = Router::new().route("/healthz", get(healthz)).route("/livez", get(livez));
            (health::listen(address, Present::Yes)?, router.with_state(self.sources.clone()))
        } else {
            let asked = Asked { address, sources: self.sources.clone() };
            // As with kube-proxy, the path has no meaning.
            (health::listen_alone(address)?, Router::new().fallback(check).with_state(asked))
        };
        Ok(tokio::spawn(health::accept(listener, router, self.connections.clone())))
    }
}

impl Sources {
    /// Returns what the owner of state has published, and whether it serves services now.
    async fn look(&self) -> (ServiceHealth, bool) {
        let is_alive = health::is_alive(&self.events, health::ALIVE).await;
        let health = self.health.borrow().clone();
        let is_healthy = is_alive && health.is_healthy;
        (health, is_healthy)
    }
}

/// A port of a service, and what its answers follow from.
#[derive(Clone)]
struct Asked {
    address: SocketAddr,
    sources: Sources,
}

/// Answers whether this node has endpoints of a service.
async fn check(State(asked): State<Asked>) -> Response {
    let (health, is_healthy) = asked.sources.look().await;
    let mut checks = health.checks.iter();
    let Some((name, check)) = checks.find(|(_, check)| check.port.get() == asked.address.port()) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let count = check.local_ready.get(&Family::of(asked.address.ip())).copied().unwrap_or_default();
    let body = json!({
        "service": { "namespace": &*name.namespace, "name": &*name.name },
        "localEndpoints": count,
        "serviceProxyHealthy": is_healthy,
    });
    ([(WEIGHT, count.to_string())], answer(is_healthy && count > 0, &body)).into_response()
}

/// Answers whether load balancers should send this node new connections to services: not while it is
/// about to go.
async fn healthz(State(sources): State<Sources>) -> Response {
    let (health, is_healthy) = sources.look().await;
    let mut body = times(&health, is_healthy);
    body["nodeEligible"] = (!health.is_leaving).into();
    answer(is_healthy && !health.is_leaving, &body)
}

/// Answers whether services are served, even while the node is about to go.
async fn livez(State(sources): State<Sources>) -> Response {
    let (health, is_healthy) = sources.look().await;
    answer(is_healthy, &times(&health, is_healthy))
}

/// Returns kube-proxy's fields. While all is well, both times are the same.
#[expect(clippy::disallowed_methods, reason = "operators read the time of day")]
fn times(health: &ServiceHealth, is_healthy: bool) -> serde_json::Value {
    let now = Timestamp::now();
    json!({ "lastUpdated": if is_healthy { now } else { health.last_healthy }, "currentTime": now })
}

fn answer(is_well: bool, body: &serde_json::Value) -> Response {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, body.to_string()).into_response()
}
