//! A Kubernetes API server, as far as a node agent sees one. It lists and watches Nodes, Services
//! and EndpointSlices over HTTP, with versions, bookmarks, pages, streamed lists and the errors of
//! the real server. It takes Events. It makes faults on demand.
//!
//! The server keeps its objects in memory. If `crate::envtest` finds etcd and kube-apiserver, tests
//! also run against them.

mod faults;
mod node_events;
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

use node_events::NodeEvents;
use store::{Resource, Store};

/// Makes the listening socket, and makes it again after a stop.
type Bind = Box<dyn Fn() -> io::Result<TcpListener> + Send + Sync>;

/// A running API server. It ends when it is dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    doors: Mutex<Vec<(Bind, Option<Certificate>)>>,
    runtime: Mutex<Option<Runtime>>,
}

/// The state that all requests share.
struct Shared {
    store: Store,
    events: Mutex<NodeEvents>,
    settings: Mutex<Settings>,
    requests: Mutex<Vec<String>>,
    listed: Mutex<Option<Instant>>,
}

/// The server's behaviour.
#[derive(Clone, Debug)]
struct Settings {
    /// Accepted bearer tokens. If empty, every client may ask.
    tokens: Vec<String>,
    /// The interval between two bookmarks of a watch.
    bookmarks: Duration,
    /// Whether a watch may begin with the list (`sendInitialEvents`).
    streams_lists: bool,
    fault: Option<Fault>,
}

impl ApiServer {
    /// Makes a server without objects. It listens nowhere until [`ApiServer::listen`].
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
            events: Mutex::default(),
            settings: Mutex::new(settings),
            requests: Mutex::default(),
            listed: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), doors: Mutex::default(), runtime: Mutex::new(Some(runtime()?)) })
    }

    /// Serves on the socket that `bind` makes, now and after every [`ApiServer::start`]. With a
    /// certificate it serves HTTPS, otherwise HTTP.
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

    /// Ends every connection and refuses new ones. The objects stay, as they do in etcd.
    pub fn stop(&self) {
        if let Some(runtime) = lock(&self.runtime).take() {
            // When `shutdown_timeout` returns, the runtime's threads have ended and the ports are
            // free. It gets a thread of its own, because the caller may be a thread of a runtime.
            let stopping = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5)));
            drop(stopping.join());
        }
    }

    /// Serves again after [`ApiServer::stop`], at the same addresses.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(&self) -> Result<()> {
        *lock(&self.runtime) = Some(runtime()?);
        for (bind, certificate) in &*lock(&self.doors) {
            self.serve(bind, certificate.as_ref())?;
        }
        Ok(())
    }

    /// Creates or updates a Node, a Service or an EndpointSlice, as its `kind` says. It gets a new
    /// version, and keeps its uid unless `object` has one.
    pub fn put(&self, object: Value) {
        self.shared.store.put(object);
    }

    /// Deletes a Node object. It is no error if none has this name.
    pub fn delete(&self, name: &str) {
        self.shared.store.delete(Resource::Nodes, name);
    }

    /// Deletes a Service or an EndpointSlice with this object's kind, namespace and name.
    pub fn delete_like(&self, object: &Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let name = format!("{}/{}", text("namespace"), text("name"));
        self.shared.store.delete(Resource::of(object), &name);
    }

    /// Replaces all nodes with those of a List. Nodes that are equal stay as they are.
    pub fn set(&self, list: &Value) {
        self.shared.store.set(Resource::Nodes, list["items"].as_array().map_or(&[], Vec::as_slice));
    }

    /// Returns all nodes, as `kubectl get nodes -o json` prints them.
    pub fn list(&self) -> Value {
        json!({ "apiVersion": "v1", "kind": "List", "items": self.shared.store.all(Resource::Nodes) })
    }

    /// Returns the current Node object.
    pub fn node(&self, name: &str) -> Option<Value> {
        self.shared.store.node(name)
    }

    /// Returns all Event objects of the group `events.k8s.io`, the oldest first.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.shared.events).list()
    }

    /// Removes all Event objects, as a real server does when they are an hour old.
    pub fn expire_events(&self) {
        lock(&self.shared.events).clear();
    }

    /// Forgets all changes so far. A client that watches from an earlier version gets 410 and has
    /// to list again.
    pub fn forget_changes(&self) {
        self.shared.store.forget_changes();
    }

    /// Accepts only these bearer tokens from now on.
    pub fn only_tokens(&self, tokens: &[&str]) {
        self.settings().tokens = tokens.iter().map(|token| (*token).to_owned()).collect();
    }

    /// Sets the interval between two bookmarks of each watch.
    pub fn bookmark_every(&self, interval: Duration) {
        self.settings().bookmarks = interval;
    }

    /// Sets whether a watch may begin with a list. Older servers refuse such a watch with 422.
    pub fn stream_lists(&self, does: bool) {
        self.settings().streams_lists = does;
    }

    /// Sets the fault that applies from now on; `None` ends it.
    pub fn fail(&self, fault: Option<Fault>) {
        self.settings().fault = fault;
        // Wake the watches that exist, so that they see the fault.
        self.shared.store.wake();
    }

    /// Returns all requests so far: method, path, query.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }

    /// Returns the time at which a watch last gave its initial list to the connection. A watch
    /// without an initial list counts, too.
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
