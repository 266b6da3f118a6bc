//! Services and EndpointSlices: what the owner of state is told of them, and when.

mod api_servers;
mod changes;
mod faults;
mod saved;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use podwire::events::Event;
use podwire::objects::Pace;
use podwire::objects::client::{Access, Server};
use podwire::services::api_server::Source;
use podwire_core::services::list::{ServiceChanges, ServiceList};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use xtask::api_server::ApiServer;

use crate::watching::{by_url, pace, server};

/// The longest wait for an event. An expected event comes much sooner.
const PATIENCE: Duration = Duration::from_secs(30);
const FILE: &str = "services.json";

/// Returns the Service `web<number>`.
fn service(number: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "namespace": "shop", "name": format!("web{number}") },
        "spec": { "clusterIPs": [format!("10.96.{high}.{low}")], "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

/// Returns the slice of `web<number>`, with one endpoint.
fn slice(number: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "shop", "name": format!("web{number}-x"),
            "labels": { "kubernetes.io/service-name": format!("web{number}") },
        },
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [format!("10.244.{high}.{low}")], "conditions": { "ready": true } }],
    })
}

/// Returns the slice with its endpoint no longer ready.
fn unready(number: u32) -> Value {
    let mut slice = slice(number);
    slice["endpoints"][0]["conditions"]["ready"] = json!(false);
    slice
}

/// Returns an API server with some services and their slices.
fn with_services(count: u32) -> ApiServer {
    let server = server(0);
    for number in 1..=count {
        server.put(service(number));
        server.put(slice(number));
    }
    server
}

/// A running source of services.
struct Watching {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    folder: TempDir,
}

impl Watching {
    fn start(address: SocketAddr) -> Self {
        Self::with(by_url(address), pace(), tempfile::tempdir().unwrap())
    }

    fn with(access: Access, pace: Pace, folder: TempDir) -> Self {
        let (sender, events) = mpsc::channel(16);
        let saved = folder.path().join(FILE);
        let task = tokio::spawn(async move {
            let server = Server::new(access, pace.silence, None).await.unwrap();
            Source { server, saved, pace }.watch(sender).await;
        });
        Self { events, task, folder }
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("no event came").expect("the source has ended")
    }

    /// Waits for the next complete list.
    async fn list(&mut self) -> ServiceList {
        loop {
            match self.next().await {
                Event::Services(list) => return list,
                Event::ServicesChanged(changes) => panic!("changes in place of a list: {changes:?}"),
                _ => {}
            }
        }
    }

    /// Waits for the next changes.
    async fn changes(&mut self) -> ServiceChanges {
        loop {
            match self.next().await {
                Event::ServicesChanged(changes) => return changes,
                Event::Services(list) => panic!("a list of {} in place of changes", list.services.len()),
                _ => {}
            }
        }
    }

    /// Waits until changes have named all of these services and slices, and no others. The text of
    /// a name ends with `-` if the object is gone.
    async fn told(&mut self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        let mut told = BTreeSet::new();
        while told != expected {
            let changes = self.changes().await;
            told.extend(names(&changes));
            assert!(told.is_subset(&expected), "{told:?} in place of {expected:?}");
        }
    }

    /// Waits for the next report that the services cannot be read.
    async fn trouble(&mut self) -> String {
        loop {
            if let Event::ServicesUnusable(reason) = self.next().await {
                return reason;
            }
        }
    }

    async fn end(self) -> TempDir {
        self.task.abort();
        let _ = self.task.await;
        self.folder
    }
}

fn names(changes: &ServiceChanges) -> Vec<String> {
    let gone = |is_there: bool| if is_there { "" } else { "-" };
    let services =
        changes.services.iter().map(|(name, service)| format!("{}{}", name.name, gone(service.is_some())));
    let slices = changes
        .slices
        .iter()
        .map(|(name, slice)| format!("{}/{}{}", name.service.name, name.name, gone(slice.is_some())));
    services.chain(slices).collect()
}

/// Counts how often a whole list was requested, in pages or as a stream.
fn lists(server: &ApiServer) -> usize {
    let requests = server.requests();
    let begins = |request: &&String| {
        request.contains("sendInitialEvents=true")
            || request.contains("limit=") && !request.contains("continue=")
    };
    requests.iter().filter(begins).count()
}
