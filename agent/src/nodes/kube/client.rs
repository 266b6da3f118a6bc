//! The connection to the API server.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;
use tokio::sync::watch;
use tower::limit::RateLimitLayer;
use tower::util::{MapRequestLayer, MapResponseLayer};

/// The time limit for making a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// The most requests in a period: enough for the pages of the largest cluster. A request that ends
/// without an error is repeated at once, so only this limit slows it down.
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
    /// Checks that the options name an API server, and that the named files can be read. Sends no
    /// request.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check(&self) -> Result<(), ClientError> {
        let config = self.config(CONNECT).await?;
        client(config, watch::channel(()).0).map(|_| ())
    }

    /// Reads files and environment, and returns the configuration with the server's address. Call
    /// this again for each client, because tokens and certificates change.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(super) async fn config(&self, silence: Duration) -> Result<Config, ClientError> {
        let mut config = match (&self.kubeconfig, &self.api_server) {
            (Some(path), _) => {
                let wrong = |reason| ClientError::Kubeconfig { path: path.clone(), reason };
                let kubeconfig = Kubeconfig::read_from(path).map_err(wrong)?;
                let options = KubeConfigOptions::default();
                Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(wrong)?
            }
            (None, url) => match (Config::incluster(), url) {
                (Ok(config), _) => config,
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
        Ok(config)
    }
}

/// Returns a client that reports to `answered` whenever the server has answered successfully.
///
/// # Errors
/// [`ClientError::Client`].
pub(super) fn client(config: Config, answered: watch::Sender<()>) -> Result<Client, ClientError> {
    let url = config.cluster_url.clone();
    let builder = ClientBuilder::try_from(config)
        .map_err(|reason| ClientError::Client { url, reason: Box::new(reason) })?;
    let note = MapResponseLayer::new(move |response: http::Response<_>| {
        if response.status().is_success() {
            answered.send_replace(());
        }
        response
    });
    let (requests, period) = REQUESTS;
    let builder = builder.with_layer(&MapRequestLayer::new(as_of_now));
    Ok(builder.with_layer(&note).with_layer(&RateLimitLayer::new(requests, period)).build())
}

/// Makes `watcher` ask for a current list. It begins a streamed list at version 0, for which the
/// server may send any version in its cache, however old. Without a version, the server sends the
/// current list, as it does for a list in pages. The list must be current, because the agent
/// removes nodes that are missing from it.
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
pub(super) fn whole(error: &dyn std::error::Error) -> String {
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
