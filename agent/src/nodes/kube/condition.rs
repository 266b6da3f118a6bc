//! This node's condition `NetworkUnavailable`: a cloud provider sets it to true for every new node, and nothing is scheduled there until
//! somebody has seen to the network and says so.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::super::objects::NETWORK_UNAVAILABLE;
use super::Source;
use super::client::{self, whole};
use super::object::WatchedNode;
use crate::events::Readiness;

/// After an attempt that failed, and after one that has not shown yet; twice as long after each that follows it.
const PAUSE: Duration = Duration::from_secs(15);
/// The longest of these pauses: somebody may set it to true again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Sets it to false whenever it is true and this agent serves. Nothing else of the node is written, and nothing while it is not true.
pub(super) async fn see_to(
    source: Source,
    mut unavailable: watch::Receiver<bool>,
    mut readiness: watch::Receiver<Readiness>,
) {
    let mut pause = PAUSE;
    loop {
        if !*unavailable.borrow() {
            pause = PAUSE;
        }
        if unavailable.wait_for(|unavailable| *unavailable).await.is_err()
            || readiness.wait_for(|readiness| *readiness == Readiness::Ready).await.is_err()
        {
            return;
        }
        // It may have been somebody else meanwhile.
        if *unavailable.borrow() {
            match set_to_false(&source).await {
                Ok(()) => info!("this node's condition NetworkUnavailable is false now"),
                Err(reason) => warn!(
                    "set this node's condition NetworkUnavailable to false (patch nodes/status; pods are not scheduled here until it is): {reason}"
                ),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }
}

/// With a client of its own: it is seldom, and tokens and certificates change meanwhile.
async fn set_to_false(source: &Source) -> Result<(), String> {
    let config = source.server.config(source.pace.silence).await.map_err(|error| whole(&error))?;
    let (answered, _) = watch::channel(());
    let client = client::client(config, answered).map_err(|error| whole(&error))?;
    let patch = Patch::Strategic(false_now());
    let nodes = Api::<WatchedNode>::all(client);
    let patched = nodes.patch_status(&source.node_name, &PatchParams::default(), &patch).await;
    patched.map(|_| ()).map_err(|error| whole(&error))
}

fn false_now() -> serde_json::Value {
    let now = jiff::Timestamp::now().to_string();
    json!({ "status": { "conditions": [{
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": "PodwireIsReady",
        "message": "Podwire serves pods on this node",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }] } })
}
