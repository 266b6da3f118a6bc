//! The API servers against which the same tests run.

use std::time::Duration;

use podwire::objects::Pace;
use podwire::objects::client::Access;
use serde_json::Value;
use tempfile::TempDir;
use xtask::api_server::ApiServer;
use xtask::envtest::Binaries;
use xtask::lab::traffic::reserved_address;

use crate::cluster::Cluster;
use crate::watching::{
    LOOPBACKS, by_kubeconfig, by_url, certificate_of, node, open, open_https, pace, server,
};

/// The kind of API server that a test asks.
#[derive(Clone, Debug)]
pub enum Kind {
    /// The project's own server, which sends a list as the beginning of a watch.
    Streams,
    /// The project's own server, which sends lists page by page.
    Pages,
    /// The project's own server at an IPv6 address, with HTTPS. `--api-server` gives the agent this
    /// address in place of the kubeconfig's, at which no server listens.
    Ipv6,
    /// A cluster's own API server.
    Cluster(Binaries),
}

/// Returns the kinds that can run on this machine. A cluster's own server needs its binaries.
pub fn kinds() -> Vec<Kind> {
    let cluster = Binaries::from_environment().unwrap().map(Kind::Cluster);
    [Kind::Streams, Kind::Pages, Kind::Ipv6].into_iter().chain(cluster).collect()
}

impl Kind {
    /// Starts a server with some nodes. The agent's account has the manifest's rights there.
    pub async fn serve(self, nodes: u32) -> Server {
        // Cargo prints this when a test fails.
        println!("asking an API server of the kind {self:?}");
        match self {
            Kind::Cluster(binaries) => {
                let cluster = Cluster::start(binaries).await;
                cluster.bind_role().await;
                for number in 1..=nodes {
                    cluster.put(&node(number)).await;
                }
                Server::Cluster(Box::new(cluster))
            }
            Kind::Ipv6 => {
                let (server, folder) = (server(nodes), tempfile::tempdir().unwrap());
                let [config, token] = ["config", "token"].map(|name| folder.path().join(name));
                std::fs::write(&token, "secret").unwrap();
                server.only_tokens(&["secret"]);
                let certificate = certificate_of(LOOPBACKS[1]);
                let address = open_https(&server, LOOPBACKS[1], certificate.clone());
                let nowhere = reserved_address(LOOPBACKS[0]).unwrap();
                let access = Access {
                    api_server: Some(format!("https://{address}").parse().unwrap()),
                    ..by_kubeconfig(&config, nowhere, &certificate, &token)
                };
                Server::Ours { server, access: Box::new(access), _folder: Some(folder) }
            }
            ours => {
                let server = server(nodes);
                server.stream_lists(matches!(ours, Kind::Streams));
                let access = Box::new(by_url(open(&server)));
                Server::Ours { server, access, _folder: None }
            }
        }
    }
}

/// An API server that is running.
pub enum Server {
    /// The project's own: the agent's access, and the folder of its files.
    Ours { server: ApiServer, access: Box<Access>, _folder: Option<TempDir> },
    /// A cluster's own.
    Cluster(Box<Cluster>),
}

impl Server {
    pub fn access(&self) -> Access {
        match self {
            Server::Ours { access, .. } => Access::clone(access),
            Server::Cluster(cluster) => cluster.access(),
        }
    }

    /// Returns short times for a test. A cluster's own server may be silent for a minute, so
    /// `silence` is longer for that server.
    pub fn pace(&self) -> Pace {
        match self {
            Server::Ours { .. } => pace(),
            Server::Cluster(_) => Pace { silence: Duration::from_secs(100), ..pace() },
        }
    }

    pub async fn put(&self, node: Value) {
        match self {
            Server::Ours { server, .. } => server.put(node),
            Server::Cluster(cluster) => cluster.put(&node).await,
        }
    }

    pub async fn delete(&self, name: &str) {
        match self {
            Server::Ours { server, .. } => server.delete(name),
            Server::Cluster(cluster) => cluster.delete(name).await,
        }
    }

    pub async fn node(&self, name: &str) -> Option<Value> {
        match self {
            Server::Ours { server, .. } => server.node(name),
            Server::Cluster(cluster) => cluster.node(name).await,
        }
    }

    /// Returns the Event objects, the oldest first.
    pub async fn events(&self) -> Vec<Value> {
        match self {
            Server::Ours { server, .. } => server.events(),
            Server::Cluster(cluster) => cluster.events().await,
        }
    }

    /// Returns the agent's requests so far: method, path, query.
    pub fn requests(&self) -> Vec<String> {
        match self {
            Server::Ours { server, .. } => server.requests(),
            Server::Cluster(cluster) => cluster.requests(),
        }
    }

    /// Ends every connection of the agent and refuses new ones.
    pub async fn stop(&mut self) {
        match self {
            Server::Ours { server, .. } => server.stop(),
            Server::Cluster(cluster) => cluster.stop().await,
        }
    }

    /// Lets the agent connect again.
    pub async fn start(&mut self) {
        match self {
            Server::Ours { server, .. } => server.start().unwrap(),
            Server::Cluster(cluster) => cluster.start_again().await,
        }
    }

    /// Makes the server answer 410 to a watch from an earlier version.
    pub async fn forget_changes(&mut self) {
        match self {
            Server::Ours { server, .. } => server.forget_changes(),
            Server::Cluster(cluster) => cluster.restart().await,
        }
    }
}
