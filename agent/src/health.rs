//! The HTTP endpoints /healthz, /readyz and /metrics.

use std::io;
use std::net::SocketAddr;
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
const ALIVE: Duration = Duration::from_secs(4);
/// Longest duration of a connection, which has one request and one answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);
/// Largest number of connections open at once.
const CONNECTIONS: usize = 64;
/// Connections that the kernel accepts before the agent does.
const BACKLOG: u32 = 128;
/// Largest size of a request's head in bytes.
const LARGEST_HEAD: usize = 16 << 10;

/// Binds the listening socket. At `::` it listens for both families, whatever
/// `net.ipv6.bindv6only` says: kubelet's probes ask 127.0.0.1.
///
/// # Errors
/// [`FileError::Io`].
pub fn bind(address: SocketAddr) -> Result<TcpListener, FileError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
        }
        // The connections of an agent that has just ended do not keep its port.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(FileError::of(
        "serve health and metrics (--metrics-address; is another agent running?) on",
        address.to_string(),
    ))
}

/// Serves until the process ends.
pub async fn serve(
    listener: TcpListener,
    events: mpsc::Sender<Event>,
    readiness: watch::Receiver<Readiness>,
) {
    let router = Router::new()
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Sources { events, readiness, patience: ALIVE });
    let connections = Connections::new(CONNECTIONS);
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
    let (reply, alive) = oneshot::channel();
    let ask = async {
        sources.events.send(Event::Alive(reply)).await.ok()?;
        alive.await.ok()
    };
    let silent = (StatusCode::SERVICE_UNAVAILABLE, "the agent's main task does not answer\n");
    match timeout(sources.patience, ask).await {
        Ok(Some(())) => "ok\n".into_response(),
        Ok(None) | Err(_) => silent.into_response(),
    }
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
        let listener = bind("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            TcpStream::connect((address, port)).await.unwrap_or_else(|error| panic!("{address}: {error}"));
        }
        assert!(bind(SocketAddr::from(([127, 0, 0, 1], port))).is_err(), "the port is taken");
    }
}
