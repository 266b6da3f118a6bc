//! This node's condition `NetworkUnavailable`. A cloud provider sets it to true for every new node.
//! The scheduler places no pods on the node until a network agent sets it to false.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::super::objects::NETWORK_UNAVAILABLE;
use super::{Nodes, Source};
use crate::events::Readiness;
use crate::objects::client::whole;
use crate::objects::watched::Watched;

/// The pause after an attempt, whether it failed or has no visible effect yet. It doubles after
/// each further attempt.
const PAUSE: Duration = Duration::from_secs(15);
/// The longest pause. Another program may set the condition to true again and again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Sets the condition to false whenever it is true and this agent is ready. Writes nothing else to
/// the node, and nothing while the condition is not true.
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
        // Another program may have set it to false in the meantime.
        if *unavailable.borrow() {
            match set_to_false(&source).await {
                Ok(()) => info!("the agent set this node's condition NetworkUnavailable to false"),
                Err(reason) => warn!(
                    "cannot set this node's condition NetworkUnavailable to false, and no pods are scheduled here until it is false (the agent needs the right to patch nodes/status): {reason}"
                ),
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }
}

/// Sets the condition with a new client: this happens rarely.
async fn set_to_false(source: &Source) -> Result<(), String> {
    let patch = Patch::Strategic(false_now());
    let nodes = Api::<Watched<Nodes>>::all(source.server.writer().await?);
    let patched = nodes.patch_status(&source.node_name, &PatchParams::default(), &patch).await;
    patched.map(|_| ()).map_err(|error| whole(&error))
}

#[expect(clippy::disallowed_methods, reason = "a condition of a Node object has a time for people to read")]
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
