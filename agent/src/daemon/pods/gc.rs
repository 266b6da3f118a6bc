//! DEL and GC: the agent takes resources back.

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
use crate::daemon::executor::Started;
use crate::daemon::state::State;
use crate::error::Error;
use crate::wire;

/// Time that a DEL waits for the purge of the pod's flows. The purge takes 1 ms if the tables are
/// empty, and 70 ms with 200,000 entries; no runtime needs to wait that long. The address and the
/// endpoint's file are kept until the purge is over, even if the agent ends before. An ADD that
/// needs the address waits.
const PATIENCE: Duration = Duration::from_millis(3);

/// An endpoint that is removed after the purge of its flows.
pub(super) struct Releasing {
    endpoint: Endpoint,
    why: &'static str,
    /// Operations to do after the purge.
    rest: Vec<Op>,
    /// Calls that wait for the outcome.
    waiting: Vec<oneshot::Sender<Outcome>>,
}

/// The result of a release.
type Outcome = Result<(), Failure>;

impl Pods {
    /// Serves a DEL. Does nothing if there is no such attachment. The DEL is answered when
    /// everything is taken back, or when the purge of the pod's flows takes longer than
    /// [`PATIENCE`].
    pub(in crate::daemon) async fn del(
        &mut self,
        state: &mut State,
        attachment: &Attachment,
        reply: oneshot::Sender<Reply>,
    ) {
        let outcome = match self.releasing.get_mut(&attachment.host_interface()) {
            Some(releasing) => releasing.outcome(),
            None => match state.model.endpoint_of(attachment).cloned() {
                Some(endpoint) => self.release(state, endpoint, "deleted").await,
                None => return answer(reply, Ok(Reply::Deleted)),
            },
        };
        tokio::spawn(answer_in_time(outcome, reply));
    }

    /// Starts to remove everything of an endpoint. The outcome arrives through the channel.
    async fn release(
        &mut self,
        state: &mut State,
        endpoint: Endpoint,
        why: &'static str,
    ) -> oneshot::Receiver<Outcome> {
        let mut there = desired(&state.model, Scope::Endpoint(&endpoint));
        let ops = plan(&Slice::default(), &there, Removals::Allowed);
        let Started { waits, rest, done } = state.executor.start(ops, &mut there).await;
        let mut releasing = Releasing { endpoint, why, rest, waiting: Vec::new() };
        let outcome = releasing.outcome();
        match done {
            Err(error) => releasing.tell(Err(failure(error))),
            Ok(()) if waits => {
                self.releasing.insert(releasing.endpoint.host_interface.clone(), releasing);
            }
            Ok(()) => releasing.finish(state, Ok(())).await,
        }
        outcome
    }

    /// Removes everything of endpoints. A failure does not stop the others. One or two purges serve
    /// all of them.
    pub(super) async fn release_all(
        &mut self,
        state: &mut State,
        endpoints: Vec<Endpoint>,
        why: &'static str,
    ) -> Vec<(Endpoint, Outcome)> {
        let mut awaited = Vec::new();
        for endpoint in endpoints {
            let outcome = self.release(state, endpoint.clone(), why).await;
            awaited.push((endpoint, outcome));
        }
        self.finish_all_joined(state).await;
        let over = awaited.into_iter().map(|(endpoint, mut outcome)| {
            let outcome = outcome.try_recv();
            (endpoint, outcome.expect("no thread is at work any more"))
        });
        over.collect()
    }

    /// Finishes the releases that waited for a purge of these addresses.
    pub(super) async fn finish_purged(
        &mut self,
        state: &mut State,
        addresses: &BTreeSet<IpAddr>,
        purged: Result<(), Error>,
    ) {
        let purged = purged.map_err(failure);
        let is_purged = |_: &String, releasing: &mut Releasing| {
            releasing.endpoint.addresses().all(|address| addresses.contains(&address))
        };
        let over: Vec<_> = self.releasing.extract_if(.., is_purged).collect();
        for (_, releasing) in over {
            releasing.finish(state, purged.clone()).await;
        }
    }

    /// Takes back every attachment of the network that is not listed as valid. A failure does not
    /// stop the others. An endpoint that has lost its file has no known network, so it stays.
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
        let mut collected = 0;
        let mut failed = Ok(());
        for (_, outcome) in self.release_all(state, garbage, "released: the runtime does not list it").await {
            collected += u32::from(outcome.is_ok());
            failed = failed.and(outcome);
        }
        failed.map(|()| collected)
    }
}

impl Releasing {
    /// Adds a channel for the outcome, and returns its receiver.
    fn outcome(&mut self) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push(sender);
        receiver
    }

    /// Does the operations after the purge, and reports the outcome.
    async fn finish(mut self, state: &mut State, purged: Outcome) {
        let rest = std::mem::take(&mut self.rest);
        let done = match purged {
            Ok(()) => state.executor.run(rest, &mut Slice::default()).await.map_err(failure),
            refused => refused,
        };
        let Self { endpoint, why, .. } = &self;
        match &done {
            Ok(()) => {
                forget(state, endpoint);
                info!(pod = %endpoint, container = endpoint.attachment.container_id, "{why}");
            }
            Err(failure) => not_released(state, endpoint, &failure.message),
        }
        self.tell(done);
    }

    fn tell(self, outcome: Outcome) {
        for waits in self.waiting {
            // A plugin may have given up.
            let _ = waits.send(outcome.clone());
        }
    }
}

/// Answers a DEL with its outcome, or with success when [`PATIENCE`] ends first.
async fn answer_in_time(outcome: oneshot::Receiver<Outcome>, reply: oneshot::Sender<Reply>) {
    match timeout(PATIENCE, outcome).await {
        Ok(Ok(done)) => answer(reply, done.map(|()| Reply::Deleted)),
        // The agent ends. The dropped `reply` tells the caller.
        Ok(Err(_)) => {}
        Err(_) => answer(reply, Ok(Reply::Deleted)),
    }
}
