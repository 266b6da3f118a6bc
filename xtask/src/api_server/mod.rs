//! A Kubernetes API server as far as a node agent sees one: Node objects, listed and watched over HTTP, with versions, bookmarks, pages,
//! streamed lists and the errors that the real one gives; and with faults on demand.
//!
//! It holds what it is given in memory. Where a cluster's own binaries are at hand, tests ask those as well (`crate::envtest`).

mod faults;
mod requests;
mod store;
mod tls;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub use faults::Fault;
pub use tls::Certificate;

use crate::lab::traffic::bound;

use store::Store;

/// Makes the socket again that a stopped server had.
type Bind = Box<dyn Fn() -> io::Result<TcpListener> + Send + Sync>;

/// A running API server; ends when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    doors: Mutex<Vec<(Bind, Option<Certificate>)>>,
    runtime: Mutex<Option<Runtime>>,
}

/// What requests see.
struct Shared {
    store: Store,
    settings: Mutex<Settings>,
    requests: Mutex<Vec<String>>,
    listed: Mutex<Option<Instant>>,
}

/// How it behaves.
#[derive(Clone, Debug)]
struct Settings {
    /// Who may ask; empty: everybody.
    tokens: Vec<String>,
    /// Between two bookmarks of a watch.
    bookmarks: Duration,
    /// Whether a watch may begin with the list (`sendInitialEvents`).
    streams_lists: bool,
    fault: Option<Fault>,
}

impl ApiServer {
    /// One without nodes that nobody reaches yet.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn new() -> Result<Self> {
        let settings = Settings {
            tokens: Vec::new(),
            bookmarks: Duration::from_secs(60),
            streams_lists: true,
            fault: None,
        };
        let shared = Shared {
            store: Store::default(),
            settings: Mutex::new(settings),
            requests: Mutex::default(),
            listed: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), doors: Mutex::default(), runtime: Mutex::new(Some(runtime()?)) })
    }

    /// Serves HTTP, or with a certificate HTTPS, on what `bind` makes: now and after every [`ApiServer::start`].
    ///
    /// # Errors
    /// Those of `bind`.
    pub fn listen(
        &self,
        bind: impl Fn() -> io::Result<TcpListener> + Send + Sync + 'static,
        certificate: Option<Certificate>,
    ) -> Result<()> {
        self.serve(&bind, certificate.as_ref())?;
        lock(&self.doors).push((Box::new(bind), certificate));
        Ok(())
    }

    /// Ends every connection and refuses new ones. What it holds stays, as etcd's does.
    pub fn stop(&self) {
        if let Some(runtime) = lock(&self.runtime).take() {
            // Its threads are gone when this is back: the ports are free. On a thread of its own, as who calls may be a runtime's.
            let stopping = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5)));
            drop(stopping.join());
        }
    }

    /// Serves again after [`ApiServer::stop`], at the same places.
    ///
    /// # Errors
    /// When a place is taken.
    pub fn start(&self) -> Result<()> {
        *lock(&self.runtime) = Some(runtime()?);
        for (bind, certificate) in &*lock(&self.doors) {
            self.serve(bind, certificate.as_ref())?;
        }
        Ok(())
    }

    /// Creates or updates a Node object: its version is a new one, and its uid stays unless it has another.
    pub fn put(&self, node: Value) {
        self.shared.store.put(node);
    }

    /// Deletes one. None of that name is no error.
    pub fn delete(&self, name: &str) {
        self.shared.store.delete(name);
    }

    /// Makes its content that of a List. What is the same stays untouched.
    pub fn set(&self, list: &Value) {
        self.shared.store.set(list["items"].as_array().map_or(&[], Vec::as_slice));
    }

    /// All of them, as `kubectl get nodes -o json` prints them.
    pub fn list(&self) -> Value {
        json!({ "apiVersion": "v1", "kind": "List", "items": self.shared.store.nodes() })
    }

    /// A Node object, as it is now.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.shared.store.node(name)
    }

    /// Forgets what changed until now: who watches from an earlier version is told 410, and has to list anew.
    pub fn forget_changes(&self) {
        self.shared.store.forget_changes();
    }

    /// Only these bearer tokens are let in from now on.
    pub fn only_tokens(&self, tokens: &[&str]) {
        self.settings().tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// Between two bookmarks of each watch.
    pub fn bookmark_every(&self, interval: Duration) {
        self.settings().bookmarks = interval;
    }

    /// Whether a list can be had as the beginning of a watch. Older servers refuse that with 422.
    pub fn stream_lists(&self, does: bool) {
        self.settings().streams_lists = does;
    }

    /// What goes wrong from now on.
    pub fn fail(&self, fault: Option<Fault>) {
        self.settings().fault = fault;
        // Watches that are there look again.
        self.shared.store.wake();
    }

    /// What was asked so far: method, path, query.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// When the last whole list was handed to the connection.
    pub fn listed(&self) -> Option<Instant> {
        *lock(&self.shared.listed)
    }

    fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.shared.settings)
    }

    fn serve(
        &self,
        bind: &dyn Fn() -> io::Result<TcpListener>,
        certificate: Option<&Certificate>,
    ) -> Result<()> {
        let listener = bound(bind).context("listen for the API server's clients")?;
        listener.set_nonblocking(true)?;
        let router = requests::router(Arc::clone(&self.shared));
        let runtime = lock(&self.runtime);
        let runtime = runtime.as_ref().context("the API server was stopped")?;
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        match certificate {
            None => drop(runtime.spawn(async { axum::serve(listener, router).await })),
            Some(certificate) => {
                let listener = certificate.accept(listener)?;
                drop(runtime.spawn(async { axum::serve(listener, router).await }));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").finish_non_exhaustive()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start the API server's runtime")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
