//! Kubernetes Events about this node, from its conditions: `kubectl describe node` shows them.
//!
//! This task asks the owner of state from time to time which conditions hold. So the owner never
//! waits for the API server, and an Event that could not be written is written later, if the
//! condition still holds then. kube's own `Recorder` would tell neither two sentences of one
//! condition apart, nor take a new token.

mod told;

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as NodeEvent, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use self::told::{Says, Series, Told, Write};
use super::Source;
use crate::conditions::Conditions;
use crate::events::Event;
use crate::objects::client::whole;

/// Events about an object without a namespace are in this one. The agent's Role is there, too.
const NAMESPACE: &str = "default";
const REPORTER: &str = "podwire";
/// The most bytes of a reporter's name.
const LONGEST_INSTANCE: usize = 128;
/// The longest pause after Events could not be written. It doubles after each attempt.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Writes Events until the owner of state has ended.
pub(super) async fn tell(source: Source, events: mpsc::Sender<Event>) {
    let mut told = Told::new(Instant::now());
    let mut pause = source.looks;
    let mut is_failing = false;
    loop {
        tokio::time::sleep(pause).await;
        let (reply, answer) = oneshot::channel();
        if events.send(Event::Conditions(reply)).await.is_err() {
            return;
        }
        let Ok(conditions) = answer.await else { continue };
        match write_all(&source, &mut told, &conditions).await {
            Ok(written) => {
                pause = source.looks;
                if written > 0 && std::mem::take(&mut is_failing) {
                    info!("the API server takes Events about this node's conditions again");
                }
            }
            Err(reason) => {
                pause = LONGEST_PAUSE.min(2 * pause);
                // One line for an API server that stays away, or that gives no right.
                if std::mem::replace(&mut is_failing, true) {
                    debug!("cannot write Events: {reason}");
                } else {
                    warn!(
                        "cannot write Events about this node's conditions (the agent needs the right to create and patch them in the namespace {NAMESPACE}): {reason}"
                    );
                }
            }
        }
    }
}

/// Writes the Events that are due now, with a new client: this happens rarely, and tokens and
/// certificates change in the meantime. Returns their number.
async fn write_all(source: &Source, told: &mut Told, conditions: &Conditions) -> Result<usize, String> {
    let now = Instant::now();
    told.look(conditions, now);
    let mut api = None;
    let mut written = 0;
    while let Some(write) = told.next(conditions, now) {
        let api = match &mut api {
            Some(api) => api,
            None => api.insert(Api::namespaced(source.server.writer().await?, NAMESPACE)),
        };
        let series = send(api, &source.node_name, &write).await.map_err(|error| said(&error))?;
        told.wrote(write, series, now);
        written += 1;
    }
    Ok(written)
}

/// Adds to the series of an earlier object with the same note, or makes a new object.
async fn send(api: &Api<NodeEvent>, node: &str, write: &Write) -> Result<Series, kube::Error> {
    if let Some(Series { object, count }) = &write.earlier {
        let count = count.saturating_add(1);
        let series = EventSeries { count, last_observed_time: now() };
        let patch = Patch::Merge(json!({ "series": series }));
        match api.patch(object, &PatchParams::default(), &patch).await {
            // The API server has removed it: it keeps Events for an hour.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            patched => return patched.map(|_| Series { object: object.clone(), count }),
        }
    }
    let made = api.create(&PostParams::default(), &event(node, write)).await?;
    Ok(Series { object: made.metadata.name.unwrap_or_default(), count: 1 })
}

/// Returns what the API server said, without the details that programs read.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => whole(error),
    }
}

fn event(node: &str, write: &Write) -> NodeEvent {
    let reason = write.name.reason();
    let (kind, reason) = match write.says {
        Says::Holds => ("Warning", reason.to_owned()),
        Says::IsOver => ("Normal", format!("{reason}Over")),
    };
    NodeEvent {
        type_: Some(kind.to_owned()),
        reason: Some(reason),
        note: Some(write.note.clone()),
        action: Some("CheckNode".to_owned()),
        event_time: Some(now()),
        // `kubectl describe node` looks for the node's name as the uid, too.
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(node[..node.floor_char_boundary(LONGEST_INSTANCE)].to_owned()),
        // The API server appends five characters, and shortens a long name before.
        metadata: ObjectMeta {
            generate_name: Some(format!("{node}-")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        ..NodeEvent::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "an Event has a time for people to read")]
fn now() -> MicroTime {
    MicroTime(k8s_openapi::jiff::Timestamp::now())
}
