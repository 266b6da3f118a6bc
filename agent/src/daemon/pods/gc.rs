//! DEL and GC: what is taken back.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use podwire_cni::protocol::{Failure, Gc, Reply};
use podwire_core::features::{Scope, desired};
use podwire_core::model::{Attachment, Endpoint};
use podwire_core::plan::{Op, Removals, plan};
use podwire_core::slice::Slice;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::info;

use super::{Pods, answer, failure, forget, not_released};
use crate::daemon::executor::{Purge, Started};
use crate::daemon::state::State;
use crate::error::Error;
use crate::wire;

/// How long a DEL waits for the purge of the pod's flows. It takes 1 ms where the tables are empty, and 70 ms with 200,000 entries,
/// which no runtime needs to wait for: the address and the endpoint's file are kept until it is over, whether or not the agent
/// lives as long, and an ADD that needs the address waits.
const PATIENCE: Duration = Duration::from_millis(3);

/// A DEL that is done but for the purge of flows and what follows.
pub(super) struct Releasing {
    endpoint: Endpoint,
    /// What is there still.
    reached: Slice,
    purge: Purge,
    /// Who waits for it.
    waiting: Vec<oneshot::Sender<Result<(), Failure>>>,
}

impl Pods {
    /// Serves a DEL. Nothing happens when there is no such attachment. It is answered when everything is taken back, or when the purge of
    /// the pod's flows takes longer than [`PATIENCE`].
    pub(in crate::daemon) async fn del(
        &mut self,
        state: &mut State,
        attachment: &Attachment,
        reply: oneshot::Sender<Reply>,
    ) {
        let name = attachment.host_interface();
        if let Some(releasing) = self.releasing.get_mut(&name) {
            releasing.waiting.push(answer_in_time(reply));
            return;
        }
        let Some(endpoint) = state.model.endpoint_of(attachment).cloned() else {
            return answer(reply, Ok(Reply::Deleted));
        };
        let (ops, mut reached) = removal(state, &endpoint);
        let Started { purge, done, .. } = state.executor.start(ops, &mut reached).await;
        match (done, purge) {
            (Err(error), _) => answer(reply, Err(failure(error))),
            (Ok(()), None) => {
                forget(state, &endpoint);
                answer(reply, Ok(Reply::Deleted));
            }
            (Ok(()), Some(purge)) => {
                let waiting = vec![answer_in_time(reply)];
                self.releasing.insert(name, Releasing { endpoint, reached, purge, waiting });
            }
        }
    }

    /// Ends the DELs whose flows were purged, or could not be.
    pub(super) async fn finish_purged(
        &mut self,
        state: &mut State,
        addresses: &BTreeSet<IpAddr>,
        purged: Result<(), Error>,
    ) {
        let purged = purged.map_err(failure);
        let is_purged =
            |_: &String, releasing: &mut Releasing| addresses.contains(&releasing.endpoint.address);
        let over: Vec<_> = self.releasing.extract_if(.., is_purged).collect();
        for (_, Releasing { endpoint, mut reached, purge, waiting }) in over {
            let done = match &purged {
                Ok(()) => {
                    let done = state.executor.go_on(purge, &mut reached).await;
                    done.map_err(failure)
                }
                Err(failure) => Err(failure.clone()),
            };
            match &done {
                Ok(()) => {
                    forget(state, &endpoint);
                    info!(pod = %endpoint, container = endpoint.attachment.container_id, "deleted");
                }
                Err(failure) => not_released(state, &endpoint, &failure.message),
            }
            for waits in waiting {
                let _ = waits.send(done.clone());
            }
        }
    }

    /// Takes everything of an endpoint back.
    ///
    /// # Errors
    /// That of the first operation which fails.
    pub(super) async fn release(&mut self, state: &mut State, endpoint: &Endpoint) -> Result<(), Error> {
        let (ops, mut reached) = removal(state, endpoint);
        state.executor.run(ops, &mut reached).await?;
        forget(state, endpoint);
        Ok(())
    }

    /// Takes back every attachment of the network that is not to stay. What fails does not keep the others
    /// from being taken. An endpoint whose file was lost has no known network, so it stays.
    pub(in crate::daemon) async fn collect_garbage(
        &mut self,
        state: &mut State,
        gc: &Gc,
    ) -> Result<u32, Failure> {
        let valid: BTreeSet<_> = gc.valid.iter().map(wire::attachment).collect();
        let is_garbage = |endpoint: &&Endpoint| {
            endpoint.network.as_ref() == Some(&gc.network) && !valid.contains(&endpoint.attachment)
        };
        let garbage: Vec<_> = state.model.endpoints.values().filter(is_garbage).cloned().collect();
        let (mut collected, mut failed) = (0, None);
        for endpoint in garbage {
            match self.release(state, &endpoint).await {
                Ok(()) => {
                    info!(pod = %endpoint, container = endpoint.attachment.container_id, "released: the runtime knows it no more");
                    collected += 1;
                }
                Err(error) => failed = Some(failure(error)),
            }
        }
        failed.map_or(Ok(collected), Err)
    }
}

/// What takes everything of an endpoint back, and what is there before.
fn removal(state: &State, endpoint: &Endpoint) -> (Vec<Op>, Slice) {
    let there = desired(&state.model, Scope::Endpoint(endpoint));
    (plan(&Slice::default(), &there, Removals::Allowed), there)
}

/// Where the outcome of a DEL goes. Its plugin is answered with it, and without it when [`PATIENCE`] ends.
fn answer_in_time(reply: oneshot::Sender<Reply>) -> oneshot::Sender<Result<(), Failure>> {
    let (outcome, awaited) = oneshot::channel::<Result<(), Failure>>();
    tokio::spawn(async move {
        match timeout(PATIENCE, awaited).await {
            Ok(Ok(done)) => answer(reply, done.map(|()| Reply::Deleted)),
            // The agent ends: who asked is told so.
            Ok(Err(_)) => {}
            Err(_) => answer(reply, Ok(Reply::Deleted)),
        }
    });
    outcome
}
