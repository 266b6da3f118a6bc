//! Event objects of the group `events.k8s.io`, with the checks of the real server.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use super::requests::status;
use super::{Fault, Shared, lock};

/// The paths of all Events and of one.
pub(super) const ALL: &str = "/apis/events.k8s.io/v1/namespaces/{namespace}/events";
pub(super) const ONE: &str = "/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}";
const MERGE: &str = "application/merge-patch+json";
/// Required fields of text, with the most bytes of each (`pkg/apis/core/validation/events.go`).
const TEXTS: [(&str, usize); 5] = [
    ("reportingController", 63),
    ("reportingInstance", 128),
    ("action", 128),
    ("reason", 128),
    ("note", 1024),
];

/// The Event objects, in the order of their creation.
#[derive(Default)]
pub(super) struct NodeEvents {
    objects: Vec<Value>,
    /// The number of names given out.
    named: usize,
}

impl NodeEvents {
    pub(super) fn list(&self) -> Vec<Value> {
        self.objects.clone()
    }

    pub(super) fn clear(&mut self) {
        self.objects.clear();
    }
}

pub(super) async fn create(
    State(shared): State<Arc<Shared>>,
    Path(namespace): Path<String>,
    body: Bytes,
) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let Ok(mut event) = serde_json::from_slice::<Value>(&body) else {
        return status(400, "BadRequest", "the body is no JSON");
    };
    if let Some(fault) = fault_of(&event, &namespace) {
        return status(422, "Invalid", &fault);
    }
    let mut events = lock(&shared.events);
    events.named += 1;
    let start = event["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
    event["metadata"]["name"] = json!(format!("{start}{:05}", events.named));
    events.objects.push(event.clone());
    (axum::http::StatusCode::CREATED, axum::Json(event)).into_response()
}

/// Merges a patch that only counts and dates. Every other field of an Event is immutable.
pub(super) async fn add_to_series(
    State(shared): State<Arc<Shared>>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Some(refusal) = refusal(&shared) {
        return refusal;
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if kind != Some(MERGE) {
        return status(415, "UnsupportedMediaType", "the body must be a merge patch");
    }
    let patch = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let counts = patch["series"]["count"].as_i64().is_some_and(|count| count >= 2)
        && patch["series"]["lastObservedTime"].is_string();
    if !counts || patch.as_object().is_none_or(|fields| fields.len() != 1) {
        return status(422, "Invalid", "series: a count of at least 2 and a time, and nothing else");
    }
    let mut events = lock(&shared.events);
    match events.objects.iter_mut().find(|event| event["metadata"]["name"] == name) {
        Some(event) => {
            event["series"] = patch["series"].clone();
            axum::Json(event.clone()).into_response()
        }
        None => status(404, "NotFound", "no such Event"),
    }
}

fn refusal(shared: &Shared) -> Option<Response> {
    match lock(&shared.settings).fault {
        Some(Fault::EventsRefused(code)) => Some(status(code, "Fault", "this fault was asked for")),
        _ => None,
    }
}

/// Returns why the real server would refuse a new Event.
fn fault_of(event: &Value, namespace: &str) -> Option<String> {
    for (field, most) in TEXTS {
        let length = event[field].as_str().map_or(0, str::len);
        if length == 0 || length > most {
            return Some(format!("{field}: {length} bytes"));
        }
    }
    if !matches!(event["type"].as_str(), Some("Normal" | "Warning")) {
        return Some(format!("type: {}", event["type"]));
    }
    if event["eventTime"].as_str().is_none() || !event["series"].is_null() {
        return Some("eventTime: required; series: only later".to_owned());
    }
    if !event["metadata"]["generateName"].as_str().is_some_and(|start| start.ends_with('-')) {
        return Some("metadata.generateName".to_owned());
    }
    // An object without a namespace has its Events in `default`.
    let (of_event, of_object) = (&event["metadata"]["namespace"], &event["regarding"]["namespace"]);
    let fits =
        *of_event == namespace && (of_object.is_null() && namespace == "default" || of_object == of_event);
    (!fits).then(|| format!("namespace: {of_event} of {of_object} in {namespace}"))
}
