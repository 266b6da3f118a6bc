//! An API server, the agent's node source, and the events that the owner of state would get.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use podwire::events::{Event, Readiness};
use podwire::nodes::kube::Source;
use podwire::objects::Pace;
use podwire::objects::client::{Access, Server as ApiOfAgent};
use podwire_core::cluster::NodeList;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use xtask::api_server::{ApiServer, Certificate};
use xtask::lab::traffic::reserved_address;

use crate::servers::Server;

/// The longest wait for an event. An expected event comes much sooner.
const PATIENCE: Duration = Duration::from_secs(30);
/// The node of the tested agent.
pub const OWN: &str = "node1";
/// The loopback addresses at which servers listen.
pub const LOOPBACKS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Returns short times for a test.
pub fn pace() -> Pace {
    Pace {
        silence: Duration::from_secs(1),
        patience: Duration::from_secs(20),
        rest: Duration::from_millis(20),
        doubt: Duration::from_millis(20),
        saving: Duration::from_millis(50),
        pause: Duration::from_millis(300),
    }
}

/// Returns an API server with some nodes.
pub fn server(nodes: u32) -> ApiServer {
    let server = ApiServer::new().unwrap();
    for number in 1..=nodes {
        server.put(node(number));
    }
    // `pace` makes one second of silence a fault, so bookmarks come more often than in a cluster.
    server.bookmark_every(Duration::from_millis(200));
    server
}

/// Returns `node<number>` with podCIDR 10.x.y.0/24, as a kubelet reports it.
pub fn node(number: u32) -> Value {
    let [_, _, high, low] = number.to_be_bytes();
    let pod_cidr = format!("10.{}.{low}.0/24", 32 + high);
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": format!("node{number}"), "labels": { "kubernetes.io/os": "linux" } },
        "spec": { "podCIDR": pod_cidr, "podCIDRs": [pod_cidr] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": format!("10.190.{high}.{low}") }],
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-01T00:00:00Z" }],
            "nodeInfo": { "operatingSystem": "linux" },
        },
    })
}

/// Serves HTTP on a port of 127.0.0.1, which stays the same after a restart.
pub fn open(server: &ApiServer) -> SocketAddr {
    let address = reserved_address(LOOPBACKS[0]).unwrap();
    server.listen(move || TcpListener::bind(address), None).unwrap();
    address
}

/// Serves HTTPS on a port of a loopback address, which stays the same after a restart.
pub fn open_https(server: &ApiServer, loopback: IpAddr, certificate: Certificate) -> SocketAddr {
    let address = reserved_address(loopback).unwrap();
    server.listen(move || TcpListener::bind(address), Some(certificate)).unwrap();
    address
}

/// Returns a certificate for an address, without any name.
pub fn certificate_of(address: IpAddr) -> Certificate {
    Certificate::new(&[&address.to_string()]).unwrap()
}

/// A running node source.
pub struct Watching {
    pub events: mpsc::Receiver<Event>,
    pub readiness: watch::Sender<Readiness>,
    task: JoinHandle<()>,
    folder: TempDir,
}

impl Watching {
    /// Starts a source that asks a server over HTTP.
    pub fn start(address: SocketAddr) -> Self {
        Self::with(by_url(address), pace(), tempfile::tempdir().unwrap())
    }

    /// Starts a source that asks one of the servers against which the same tests run.
    pub fn of(server: &Server) -> Self {
        Self::with(server.access(), server.pace(), tempfile::tempdir().unwrap())
    }

    pub fn with(access: Access, pace: Pace, folder: TempDir) -> Self {
        // Only the tests of Events look.
        Self::looking(access, pace, folder, Duration::from_secs(3600))
    }

    /// Starts a source that looks for conditions without an Event after each pause of `looks`.
    pub fn looking(access: Access, pace: Pace, folder: TempDir, looks: Duration) -> Self {
        let (sender, events) = mpsc::channel(16);
        let (readiness, is_ready) = watch::channel(Readiness::Waiting("the test says so".into()));
        let saved = folder.path().join("nodes.json");
        let task = tokio::spawn(async move {
            let server = ApiOfAgent::new(access, pace.silence, None).await.unwrap();
            let source = Source { server, node_name: OWN.into(), saved, pace, looks };
            source.watch(sender, is_ready).await;
        });
        Self { events, readiness, task, folder }
    }

    /// Returns the path of the cache's file.
    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("nodes.json")
    }

    /// Waits for the next event.
    pub async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv()).await.expect("no event came").expect("the source has ended")
    }

    /// Waits for the next list and ignores other events before it.
    pub async fn list(&mut self) -> NodeList {
        loop {
            if let Event::Nodes(list) = self.next().await {
                return list;
            }
        }
    }

    /// Waits for the next list and returns its names.
    pub async fn names(&mut self) -> Vec<String> {
        self.list().await.records.into_iter().map(|record| record.name).collect()
    }

    /// Waits for the first list that meets a condition.
    pub async fn until(&mut self, holds: impl Fn(&NodeList) -> bool) -> NodeList {
        loop {
            let list = self.list().await;
            if holds(&list) {
                return list;
            }
        }
    }

    /// Waits for the next report that the list is unusable, and returns its reason.
    pub async fn trouble(&mut self) -> String {
        loop {
            if let Event::NodeListUnusable(reason) = self.next().await {
                return reason;
            }
        }
    }

    /// Ends the source as an agent's end does, and returns the folder with its cache.
    pub async fn end(self) -> TempDir {
        self.task.abort();
        let _ = self.task.await;
        self.folder
    }
}

/// Returns the access of `--api-server`.
pub fn by_url(address: SocketAddr) -> Access {
    Access { kubeconfig: None, api_server: Some(format!("http://{address}").parse().unwrap()) }
}

/// Returns the access of `--kubeconfig`, with the token in a file as for a service account.
pub fn by_kubeconfig(path: &Path, address: SocketAddr, certificate: &Certificate, token: &Path) -> Access {
    let authority = path.with_extension("crt");
    std::fs::write(&authority, certificate.pem()).unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": format!("https://{address}"), "certificate-authority": authority } }],
        "users": [{ "name": "agent", "user": { "tokenFile": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "agent" } }],
    });
    std::fs::write(path, config.to_string()).unwrap();
    Access { kubeconfig: Some(path.into()), api_server: None }
}

/// Waits for a condition that no event reports.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}
