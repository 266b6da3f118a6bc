//! The connection to the API server.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use kube::Client;
use kube::client::{Body, ClientBuilder};
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;
use tokio::sync::watch;
use tower::limit::RateLimitLayer;
use tower::util::{MapRequestLayer, MapResponseLayer};
use tracing::warn;

use super::ways::Ways;

/// The time limit for making a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The most requests for one kind of objects in a period: enough for the pages of the largest
/// cluster. A request that ends without an error is repeated at once, so only this limit slows it
/// down.
const REQUESTS: (u64, Duration) = (30, Duration::from_secs(6));

/// The API server's address, and the agent's credentials for it. The default is what every pod
/// gets: address and port from the environment, certificate and token from the service account's
/// files.
#[derive(Args, Clone, Debug, Default)]
pub struct Access {
    /// A kubeconfig file with the API server's address and the agent's credentials. The default is
    /// the pod's service account.
    #[arg(long, env = "PODWIRE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address. It replaces the one of --kubeconfig or of the service account. Set
    /// it if the agent must reach the API server without kube-proxy.
    #[arg(long, env = "PODWIRE_API_SERVER", value_name = "URL", value_parser = parse_url)]
    pub api_server: Option<http::Uri>,
}

/// The reason why the agent cannot ask the API server.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Neither a pod's environment nor an option names the API server.
    #[error(
        "the agent does not know the API server's address, because it does not run in a pod ({0}): set --kubeconfig or --api-server, or give the node list as a file with --nodes"
    )]
    NoPod(InClusterError),
    /// The service account's files cannot be read.
    #[error("read the service account's files: {0} (is automountServiceAccountToken on?)")]
    ServiceAccount(InClusterError),
    /// The file of `--kubeconfig` cannot be read.
    #[error("read --kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// The problem.
        reason: KubeconfigError,
    },
    /// The configuration is contradictory, or a certificate is unusable.
    #[error("set up the client for the API server {url}: {reason}")]
    Client {
        /// Its address.
        url: http::Uri,
        /// The problem.
        reason: Box<kube::Error>,
    },
}

/// Parses the API server's URL. Refuses plain HTTP except to a loopback address, because it would
/// show the token to everyone on the path.
fn parse_url(text: &str) -> Result<http::Uri, String> {
    let url: http::Uri = text.parse().map_err(|error| format!("`{text}` is not a URL: {error}"))?;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback =
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if is_loopback => Ok(url),
        Some("http") => {
            Err(format!("`{text}` would show the token to everyone on the network path: use https://"))
        }
        _ => Err(format!("`{text}` is not a URL such as https://10.0.0.5:6443")),
    }
}

impl Access {
    /// Reads files and environment, and returns the configuration with the server's address. Call
    /// this again for each client, because tokens and certificates change. In a pod, returns also
    /// the name that each API server's certificate has: that of the environment.
    ///
    /// # Errors
    /// [`ClientError`].
    async fn config(&self, silence: Duration) -> Result<(Config, Option<String>), ClientError> {
        let mut name = None;
        let mut config = match (&self.kubeconfig, &self.api_server) {
            (Some(path), _) => {
                let wrong = |reason| ClientError::Kubeconfig { path: path.clone(), reason };
                let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?
            }
            (None, url) => match (Config::incluster(), url) {
                (Ok(config), _) => {
                    // An IPv6 address has brackets in a URL, and none in a certificate.
                    name = config.cluster_url.host().map(|host| host.trim_matches(['[', ']']).to_owned());
                    config
                }
                (Err(InClusterError::ReadEnvironmentVariable(_)), Some(url)) => Config::new(url.clone()),
                (Err(error @ InClusterError::ReadEnvironmentVariable(_)), None) => {
                    return Err(ClientError::NoPod(error));
                }
                (Err(error), _) => return Err(ClientError::ServiceAccount(error)),
            },
        };
        if let Some(url) = &self.api_server {
            config.cluster_url = url.clone();
        }
        config.connect_timeout = Some(CONNECT);
        // Most API servers send a bookmark every minute. A watch that is silent for longer is
        // resumed.
        config.read_timeout = Some(silence);
        config.reset_reader_on_write = true;
        // The callers pause between attempts themselves.
        config.default_retry = false;
        Ok((config, name))
    }
}

/// An API server. The followers of all kinds of objects share one client, and with it connections
/// and credentials.
pub struct Server {
    access: Access,
    silence: Duration,
    /// The address of the configuration.
    configured: http::Uri,
    /// In a pod, the addresses of the service's endpoints.
    ways: Option<Ways>,
    current: Mutex<Current>,
}

/// The client of now.
struct Current {
    client: Client,
    url: String,
    /// The certificates that the client trusts.
    trusted: Option<Vec<Vec<u8>>>,
    /// The number of clients before this one.
    number: u64,
    /// The endpoint that it asks. `None`: the configured address.
    endpoint: Option<SocketAddr>,
    /// Whether a follower has gone on to another address already.
    is_skipped: bool,
}

/// What the agent does about an address without an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Skipped {
    /// It goes on to one that it has not tried yet.
    One,
    /// It has tried all, and begins again.
    Last,
    /// There is only this one.
    Nothing,
}

/// A client for the objects of one kind.
pub(super) struct Numbered {
    pub(super) kube: Client,
    /// The number of the shared client behind it.
    pub(super) number: u64,
}

impl Server {
    /// Reads files and environment, and makes the client. Sends no request. The agent gives a
    /// connection up after this time of `silence`. It keeps the addresses of the API server's
    /// endpoints in a file, if there is one.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn new(
        access: Access,
        silence: Duration,
        endpoints: Option<PathBuf>,
    ) -> Result<Arc<Self>, ClientError> {
        let found = access.config(silence).await?;
        let configured = found.0.cluster_url.clone();
        let ways = found.1.as_ref().map(|_| Ways::new(endpoints, access.api_server.is_some()));
        let endpoint = ways.as_ref().and_then(Ways::now);
        let current = Mutex::new(Current::new(towards(endpoint, found), 0, endpoint)?);
        Ok(Arc::new(Self { access, silence, configured, ways, current }))
    }

    /// Returns the server's address, for messages.
    pub(super) fn url(&self) -> String {
        self.current().url.clone()
    }

    /// Returns the configured address and port, unless the server has a name there.
    pub fn address(&self) -> Option<SocketAddr> {
        let url = &self.configured;
        let host = url.host()?.trim_matches(['[', ']']).parse().ok()?;
        let usual = if url.scheme_str() == Some("http") { 80 } else { 443 };
        Some(SocketAddr::new(host, url.port_u16().unwrap_or(usual)))
    }

    /// Returns a client for the objects of one kind. It reports to `answered` whenever the server
    /// has answered a request of this client successfully. It has its own limit of requests, so
    /// that no kind delays another one.
    pub(super) fn client(&self, answered: watch::Sender<()>) -> Numbered {
        let current = self.current();
        Numbered { kube: limited(current.client.clone(), answered), number: current.number }
    }

    /// Returns a client for a write, with the token and the certificates of now. It asks where the
    /// followers ask, since that address answers.
    pub(crate) async fn writer(&self) -> Result<Client, String> {
        let endpoint = self.current().endpoint;
        let config = config(&self.access, self.silence, endpoint).await.map_err(|error| whole(&error))?;
        let current = Current::new(config, 0, endpoint).map_err(|error| whole(&error))?;
        Ok(limited(current.client, watch::channel(()).0))
    }

    /// Replaces the client of this number: its token or its certificates are no longer valid. Does
    /// nothing if another kind's follower has replaced it already.
    pub(super) async fn renew(&self, number: u64) {
        if self.current().number != number {
            return;
        }
        let endpoint = self.ways.as_ref().and_then(Ways::now);
        let renewed = match config(&self.access, self.silence, endpoint).await {
            Ok(config) => Current::new(config, number + 1, endpoint),
            Err(error) => Err(error),
        };
        match renewed {
            Ok(renewed) => *self.current() = renewed,
            // The files may be half written at this moment. Then the old client goes on, and the
            // agent reads the files again after the next attempt.
            Err(error) => warn!("{error}; the agent goes on with the credentials that it read before"),
        }
    }

    /// Takes the endpoints of the service `default/kubernetes`: an agent in a pod can reach the API
    /// server there, too.
    pub(crate) fn note_endpoints(&self, endpoints: Vec<SocketAddr>) {
        if let Some(ways) = &self.ways {
            ways.replace(endpoints);
        }
    }

    /// Goes on to the next address of the server, if it has several: there is no answer at that of
    /// the client of this number.
    pub(super) fn skip(&self, number: u64) -> Skipped {
        let Some(ways) = self.ways.as_ref().filter(|ways| ways.are_several()) else {
            return Skipped::Nothing;
        };
        let mut current = self.current();
        // Several followers share the client, and fail at once.
        if current.number == number && !std::mem::replace(&mut current.is_skipped, true) {
            ways.skip();
        }
        drop(current);
        if ways.is_round_over() { Skipped::Last } else { Skipped::One }
    }

    /// Returns whether the files now name other certificates than those that the client trusts.
    pub(super) async fn trusts_what_was(&self) -> bool {
        let now = config(&self.access, self.silence, None).await;
        now.is_ok_and(|now| now.root_cert != self.current().trusted)
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the configuration, and returns it with the address of an endpoint, if there is one.
async fn config(
    access: &Access,
    silence: Duration,
    endpoint: Option<SocketAddr>,
) -> Result<Config, ClientError> {
    Ok(towards(endpoint, access.config(silence).await?))
}

/// Leads what [`Access::config`] has found to an endpoint, if there is one.
fn towards(endpoint: Option<SocketAddr>, (mut config, name): (Config, Option<String>)) -> Config {
    if let (Some(name), Some(endpoint)) = (name, endpoint)
        && let Ok(url) = format!("https://{endpoint}").parse()
    {
        config.cluster_url = url;
        config.tls_server_name = Some(name);
    }
    config
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("access", &self.access).finish_non_exhaustive()
    }
}

impl Current {
    fn new(config: Config, number: u64, endpoint: Option<SocketAddr>) -> Result<Self, ClientError> {
        let (url, trusted) = (config.cluster_url.clone(), config.root_cert.clone());
        let shown = url.to_string();
        // The builder sets up TLS: an unusable certificate shows here.
        let builder = ClientBuilder::try_from(config)
            .map_err(|reason| ClientError::Client { url, reason: Box::new(reason) })?;
        let client = builder.with_layer(&MapRequestLayer::new(as_of_now)).build();
        Ok(Self { client, url: shown, trusted, number, endpoint, is_skipped: false })
    }
}

/// Returns a client behind a client: it limits the requests, and reports to `answered`.
fn limited(shared: Client, answered: watch::Sender<()>) -> Client {
    let send = tower::service_fn(move |request: http::Request<Body>| {
        let shared = shared.clone();
        async move { shared.send(request).await }
    });
    let note = MapResponseLayer::new(move |response: http::Response<Body>| {
        if response.status().is_success() {
            answered.send_replace(());
        }
        response
    });
    let (requests, period) = REQUESTS;
    let builder = ClientBuilder::new(send, "default").with_layer(&note);
    builder.with_layer(&RateLimitLayer::new(requests, period)).build()
}

/// Makes `watcher` ask for a current list. It begins a streamed list at version 0, for which the
/// server may send any version in its cache, however old. Without a version, the server sends the
/// current list, as it does for a list in pages. The list must be current, because the agent
/// removes objects that are missing from it.
fn as_of_now<B>(mut request: http::Request<B>) -> http::Request<B> {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    if path.contains("sendInitialEvents=true")
        && let Ok(path) = path.replace("resourceVersion=0", "resourceVersion=").parse()
    {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(path);
        if let Ok(url) = http::Uri::from_parts(parts) {
            *request.uri_mut() = url;
        }
    }
    request
}

/// Returns the text of an error with its causes: libraries give the reason there.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let reason = source.to_string();
        if !text.contains(&reason) {
            text += ": ";
            text += &reason;
        }
        next = source.source();
    }
    text
}
