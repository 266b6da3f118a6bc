//! The HTTP endpoints /healthz, /readyz and /metrics.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::connections::{Connections, Place};
use crate::events::{Event, Readiness};
use crate::files::FileError;
use crate::metrics::{CONTENT_TYPE, Process, text};

/// An owner of state that does not answer within this time is not alive. The slowest thing that it
/// does itself is a disk access.
pub(crate) const ALIVE: Duration = Duration::from_secs(4);
/// Longest duration of a connection, which has one request and one answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// Largest number of connections open at once at --metrics-address.
const CONNECTIONS: usize = 64;
/// Largest number of connections open at once at each address of the node. Every host and pod may
/// ask there, and each answer takes the main task's time.
const NODE_CONNECTIONS: usize = 8;
/// Connections that the kernel accepts before the agent does.
const BACKLOG: u32 = 128;
/// Largest size of a request's head in bytes.
const LARGEST_HEAD: usize = 16 << 10;

/// The listening sockets.
#[derive(Debug)]
pub struct Listeners {
    own: TcpListener,
    /// Sockets that serve /metrics alone.
    of_node: Vec<TcpListener>,
}

impl Listeners {
    /// Listens at an address for all questions, and at addresses of the node for /metrics, with the
    /// same port.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn bind(address: SocketAddr, node_addresses: &[IpAddr]) -> Result<Self, FileError> {
        let of_node = node_addresses.iter().map(|node| SocketAddr::new(*node, address.port()));
        let of_node = of_node.map(|address| {
            listen(address, Present::Perhaps)
                .map_err(FileError::of("serve metrics (--metrics-node-addresses) on", address.to_string()))
        });
        let own = listen(address, Present::Yes).map_err(FileError::of(
            "serve health and metrics (--metrics-address; is another agent running?) on",
            address.to_string(),
        ))?;
        Ok(Self { own, of_node: of_node.collect::<Result<_, _>>()? })
    }

    /// Serves until the process ends.
    pub async fn serve(self, events: mpsc::Sender<Event>, readiness: watch::Receiver<Readiness>) {
        let sources = Sources { events, readiness, patience: ALIVE };
        let of_node = Router::new().route("/metrics", get(metrics));
        let own = of_node.clone().route("/healthz", get(healthy)).route("/readyz", get(ready));
        for listener in self.of_node {
            let router = of_node.clone().with_state(sources.clone());
            tokio::spawn(accept(listener, router, Connections::new(NODE_CONNECTIONS)));
        }
        accept(self.own, own.with_state(sources), Connections::new(CONNECTIONS)).await;
    }
}

/// Whether the node has an address when the agent starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Present {
    /// The address is there, or it is a mistake.
    Yes,
    /// A link may get the address later. A cloud may also translate it, so that no link ever has it.
    Perhaps,
}

/// Listens at an address. At `::` it listens for both families, whatever `net.ipv6.bindv6only`
/// says: kubelet's probes ask 127.0.0.1.
pub(crate) fn listen(address: SocketAddr, present: Present) -> io::Result<TcpListener> {
    listen_with(address, present, !address.ip().is_unspecified())
}

/// Listens at an address, also at `::`, for its own family only.
pub(crate) fn listen_alone(address: SocketAddr) -> io::Result<TcpListener> {
    listen_with(address, Present::Yes, true)
}

fn listen_with(address: SocketAddr, present: Present, is_alone: bool) -> io::Result<TcpListener> {
    let may_be_absent = present == Present::Perhaps;
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, is_alone)?;
        sockopt::set_ipv6_freebind(&socket, may_be_absent)?;
    } else {
        sockopt::set_ip_freebind(&socket, may_be_absent)?;
    }
    // The connections of an agent that has just ended do not keep its port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves a socket until the process ends, or until its task is aborted. `connections`: those that
/// may be open at once, also at other sockets.
pub(crate) async fn accept(listener: TcpListener, router: Router, connections: Connections) {
    loop {
        connections.room().await;
        match listener.accept().await {
            Ok((stream, _)) => connections.spawn(|place| converse(stream, router.clone(), place)),
            Err(error) => {
                warn!("could not accept a connection for health and metrics: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, router: Router, place: Place) {
    let router = TowerToHyperService::new(router);
    let answer = service_fn(move |request| {
        place.keep();
        router.call(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    if let Ok(Err(error)) = timeout(CONNECTION_DEADLINE, connection).await {
        debug!("a connection for health and metrics failed: {error}");
    }
}

#[derive(Clone)]
struct Sources {
    events: mpsc::Sender<Event>,
    readiness: watch::Receiver<Readiness>,
    patience: Duration,
}

/// Answers whether the owner of state responds at all, ready or not.
async fn healthy(State(sources): State<Sources>) -> Response {
    let silent = (StatusCode::SERVICE_UNAVAILABLE, "the agent's main task does not answer\n");
    match is_alive(&sources.events, sources.patience).await {
        true => "ok\n".into_response(),
        false => silent.into_response(),
    }
}

/// Returns whether the owner of state takes events, within a time.
pub(crate) async fn is_alive(events: &mpsc::Sender<Event>, patience: Duration) -> bool {
    let (reply, alive) = oneshot::channel();
    let ask = async {
        events.send(Event::Alive(reply)).await.ok()?;
        alive.await.ok()
    };
    matches!(timeout(patience, ask).await, Ok(Some(())))
}

/// Answers whether the agent is ready. With `?verbose`, lists all conditions after that, one per
/// line.
async fn ready(State(sources): State<Sources>, RawQuery(query): RawQuery) -> Response {
    let (status, mut text) = match &*sources.readiness.borrow() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::Waiting(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    };
    if query.as_deref() == Some("verbose") {
        let (reply, conditions) = oneshot::channel();
        let asked = sources.events.send(Event::Conditions(reply)).await;
        if let (Ok(()), Ok(conditions)) = (asked, conditions.await) {
            text.extend(conditions.iter().map(|condition| format!("{condition}\n")));
        }
    }
    (status, text).into_response()
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let (reply, figures) = oneshot::channel();
    let asked = sources.events.send(Event::Figures(reply)).await;
    let (Ok(()), Ok(figures)) = (asked, figures.await) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n").into_response();
    };
    let is_ready = *sources.readiness.borrow() == Readiness::Ready;
    let process = Process::read().inspect_err(|error| warn!("could not read what the agent uses: {error}"));
    match text(&figures, process.as_ref().ok(), is_ready) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_owner_of_state_that_does_not_answer_is_not_alive() {
        let (events, mut queue) = mpsc::channel(1);
        let (_, readiness) = watch::channel(Readiness::Waiting("for nodes".into()));
        let sources = Sources { events, readiness, patience: Duration::from_secs(60) };
        let asked = tokio::spawn(healthy(State(sources.clone())));
        let Some(Event::Alive(reply)) = queue.recv().await else { panic!("the daemon is not asked") };
        reply.send(()).unwrap();
        assert_eq!(asked.await.unwrap().status(), StatusCode::OK, "alive, though not ready");

        let impatient = Sources { patience: Duration::from_millis(1), ..sources.clone() };
        assert_eq!(healthy(State(impatient)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(queue);
        assert_eq!(healthy(State(sources)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn the_address_of_all_addresses_serves_both_families() {
        let listener = listen("[::]:0".parse().unwrap(), Present::Yes).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            TcpStream::connect((address, port)).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        let taken = listen(SocketAddr::from(([127, 0, 0, 1], port)), Present::Yes);
        assert!(taken.is_err(), "the port is taken");
    }

    #[tokio::test]
    async fn an_address_of_the_node_may_come_later() {
        // Addresses of documentation, which no host has (RFC 5737, RFC 3849).
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let address = address.parse().unwrap();
            assert!(listen(address, Present::Yes).is_err(), "{address}");
            listen(address, Present::Perhaps).unwrap_or_else(|error| panic!("{address}: {error}"));
        }
    }
}
