//! Requests and their answers, in the API server's own words (Kubernetes API concepts, "Efficient
//! detection of changes").

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch, post};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::store::{Change, Kind, Resource};
use super::{Fault, Shared, lock, node_events};

/// The time within which a connection has sent the bytes that it was given.
const SENDING: Duration = Duration::from_millis(20);
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let objects = |resource: Resource| {
        get(move |State(shared): State<Arc<Shared>>, Query(parameters): Query<Parameters>| async move {
            match parameters.watch {
                true => watch(shared, resource, &parameters),
                false => list(&shared, resource, &parameters),
            }
        })
    };
    Resource::ALL
        .into_iter()
        .fold(Router::new(), |router, resource| router.route(resource.path(), objects(resource)))
        .route("/api/v1/nodes/{name}/status", patch(patch_status))
        .route(node_events::ALL, post(node_events::create))
        .route(node_events::ONE, patch(node_events::add_to_series))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// Records the request, checks its token, and applies the fault that was requested.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    lock(&shared.requests).push(format!("{} {}", request.method(), request.uri()));
    let settings = lock(&shared.settings).clone();
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    if !settings.tokens.is_empty()
        && !token.is_some_and(|token| settings.tokens.iter().any(|good| good == token))
    {
        return status(401, "Unauthorized", "Unauthorized");
    }
    match settings.fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::KindRefused(kind, code)) if request.uri().path().ends_with(kind) => {
            status(code, "Fault", "this fault was asked for")
        }
        Some(Fault::Status(code)) => status(code, "Fault", "this fault was asked for"),
        Some(Fault::CutAfter(bytes)) => next.run(request).await.map(|body| cut(body, bytes)),
        Some(Fault::Slow(piece, pause)) => next.run(request).await.map(|body| slow(body, piece, pause)),
        // These faults concern some requests only. Their handlers apply them.
        Some(
            Fault::WatchesEnd
            | Fault::WatchesFail(_)
            | Fault::KindRefused(..)
            | Fault::VersionsRefused(_)
            | Fault::EventsRefused(_)
            | Fault::PagesExpire,
        )
        | None => next.run(request).await,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Parameters {
    watch: bool,
    resource_version: String,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    after: Option<String>,
    allow_watch_bookmarks: bool,
    send_initial_events: bool,
    timeout_seconds: Option<u64>,
}

fn list(shared: &Shared, resource: Resource, parameters: &Parameters) -> Response {
    let settings = lock(&shared.settings).clone();
    if parameters.after.is_some() && settings.fault == Some(Fault::PagesExpire) {
        return status(410, "Expired", "The provided continue parameter is too old");
    }
    let (version, after) = match parameters.after.as_deref().and_then(|token| token.split_once(':')) {
        Some((version, name)) => (Some(version.to_owned()), Some(name.to_owned())),
        None => (None, None),
    };
    let (items, more, now) =
        shared.store.page(resource, after.as_deref(), parameters.limit.unwrap_or(usize::MAX));
    let version = version.unwrap_or_else(|| now.to_string());
    let next = more.map_or(String::new(), |name| format!("{version}:{name}"));
    let metadata = json!({ "resourceVersion": version, "continue": next });
    let (kind, version) = (resource.kind(), resource.api_version());
    let text = format!(
        r#"{{"kind":"{kind}List","apiVersion":"{version}","metadata":{metadata},"items":[{}]}}"#,
        items.join(",")
    );
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn watch(shared: Arc<Shared>, resource: Resource, parameters: &Parameters) -> Response {
    let settings = lock(&shared.settings).clone();
    if parameters.send_initial_events && !settings.streams_lists {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return status(422, "Invalid", message);
    }
    match settings.fault {
        Some(Fault::WatchesEnd) => return events(Body::empty()),
        Some(Fault::WatchesFail(code)) => {
            let error = status_object(code, "Fault", "this fault was asked for");
            return events(Body::from(error_line(&error)));
        }
        Some(Fault::VersionsRefused(code)) if !matches!(parameters.resource_version.as_str(), "" | "0") => {
            return status(code, "Fault", "this fault was asked for");
        }
        _ => {}
    }
    let mut first = Vec::new();
    let from = match parameters.resource_version.as_str() {
        "" | "0" => {
            let (items, _, version) = shared.store.page(resource, None, usize::MAX);
            first.extend(items.iter().map(|item| line(Kind::Added, item)));
            if parameters.send_initial_events {
                first.push(bookmark(resource, version, true));
            }
            version
        }
        version => version.parse().unwrap_or_default(),
    };
    let listed_by = Arc::clone(&shared);
    let deadline = Instant::now() + Duration::from_secs(parameters.timeout_seconds.unwrap_or(3600));
    let bookmarks = parameters.allow_watch_bookmarks.then_some(settings.bookmarks);
    let later =
        stream::unfold(Watcher::new(shared, resource, from, deadline, bookmarks), |watcher| watcher.next());
    // Join lines into pieces: each piece costs a system call.
    let first: Vec<Bytes> = first.chunks(16).map(|lines| Bytes::from(lines.concat())).collect();
    let listing = Arc::clone(&listed_by);
    // The stream polls this part after the connection has taken all parts before it.
    let end = stream::once(async move { *lock(&listing.listed) = Some(std::time::Instant::now()) });
    let first = stream::iter(first).chain(end.filter_map(|()| async { None }));
    let lines = first.chain(later).map(Ok::<_, std::io::Error>);
    events(Body::from_stream(lines))
}

fn events(lines: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], lines).into_response()
}

/// A watch of one client.
struct Watcher {
    shared: Arc<Shared>,
    resource: Resource,
    versions: tokio::sync::watch::Receiver<u64>,
    from: u64,
    deadline: Instant,
    bookmarks: Option<Duration>,
    next_bookmark: Instant,
    is_over: bool,
}

impl Watcher {
    fn new(
        shared: Arc<Shared>,
        resource: Resource,
        from: u64,
        deadline: Instant,
        bookmarks: Option<Duration>,
    ) -> Self {
        let versions = shared.store.versions();
        let next_bookmark = Instant::now() + bookmarks.unwrap_or_default();
        Self { shared, resource, versions, from, deadline, bookmarks, next_bookmark, is_over: false }
    }

    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.is_over {
            return None;
        }
        loop {
            self.versions.mark_unchanged();
            let fault = lock(&self.shared.settings).fault.clone();
            let hangs = fault == Some(Fault::Hang);
            if fault == Some(Fault::WatchesEnd) {
                return None;
            }
            match self.shared.store.changes_after(self.resource, self.from) {
                _ if hangs => {}
                None => {
                    self.is_over = true;
                    let gone = status_object(410, "Expired", "too old resource version");
                    return Some((error_line(&gone).into(), self));
                }
                Some(changes) if !changes.is_empty() => {
                    self.from = changes.last().map_or(self.from, |change| change.version);
                    let lines: String =
                        changes.iter().map(|Change { kind, object, .. }| line(*kind, object)).collect();
                    return Some((lines.into(), self));
                }
                Some(_) => {}
            }
            tokio::select! {
                changed = self.versions.changed() => changed.ok()?,
                () = sleep_until(self.deadline) => return None,
                () = sleep_until(self.next_bookmark), if self.bookmarks.is_some() && !hangs => {
                    self.next_bookmark = Instant::now() + self.bookmarks.unwrap_or_default();
                    self.from = self.shared.store.version().max(self.from);
                    return Some((bookmark(self.resource, self.from, false).into(), self));
                }
            }
        }
    }
}

/// Merges the patch's conditions into the node's by their type. The agent sends such a patch for a
/// node of a cloud provider.
async fn patch_status(
    State(shared): State<Arc<Shared>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind != Some(STRATEGIC_MERGE) {
        return status(415, "UnsupportedMediaType", "the body must be a strategic merge patch");
    }
    let (Some(mut node), Ok(patch)) = (shared.store.node(&name), serde_json::from_slice::<Value>(&body))
    else {
        return status(404, "NotFound", "no such node, or the patch is no JSON");
    };
    let new = patch["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in new {
        conditions.retain(|there| there["type"] != condition["type"]);
        conditions.push(condition);
    }
    node["status"]["conditions"] = Value::Array(conditions);
    shared.store.put(node.clone());
    axum::Json(node).into_response()
}

/// Encodes an event of a watch. The type comes first, as in the real server's events.
fn line(kind: Kind, object: &str) -> String {
    let kind = match kind {
        Kind::Added => "ADDED",
        Kind::Modified => "MODIFIED",
        Kind::Deleted => "DELETED",
    };
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn error_line(status: &Value) -> String {
    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n")
}

fn bookmark(resource: Resource, version: u64, ends_list: bool) -> String {
    let annotations = if ends_list { json!({ "k8s.io/initial-events-end": "true" }) } else { json!({}) };
    let metadata = json!({ "resourceVersion": version.to_string(), "annotations": annotations });
    let (kind, version) = (resource.kind(), resource.api_version());
    let object = json!({ "kind": kind, "apiVersion": version, "metadata": metadata });
    format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n")
}

fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": reason, "message": message, "code": code })
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Response {
    let code_of_http = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code_of_http, axum::Json(status_object(code, reason, message))).into_response()
}

/// Sends the first bytes of a body, then fails the connection.
fn cut(body: Body, bytes: usize) -> Body {
    let mut left = bytes;
    let cut = body.into_data_stream().then(move |piece| {
        let is_over = left == 0;
        let piece = piece.map_err(std::io::Error::other).map(|piece| piece.slice(..piece.len().min(left)));
        left -= piece.as_ref().map_or(0, Bytes::len);
        async move {
            if is_over {
                // A connection that fails drops what it has not sent yet.
                tokio::time::sleep(SENDING).await;
                return Err(std::io::Error::other("the answer is cut here, as was asked for"));
            }
            piece
        }
    });
    Body::from_stream(cut)
}

fn slow(body: Body, size: usize, pause: Duration) -> Body {
    let pieces = body.into_data_stream().flat_map(move |chunk| stream::iter(in_pieces(chunk, size)));
    Body::from_stream(pieces.enumerate().then(move |(index, piece)| async move {
        if index > 0 {
            tokio::time::sleep(pause).await;
        }
        piece
    }))
}

fn in_pieces(chunk: Result<Bytes, axum::Error>, size: usize) -> Vec<Result<Bytes, axum::Error>> {
    match chunk {
        Ok(bytes) => bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect(),
        Err(error) => vec![Err(error)],
    }
}
