//! DEL and GC: what is taken back.

use std::collections::BTreeSet;

use podwire_cni::protocol::{Failure, Gc};
use podwire_core::features::{Scope, desired};
use podwire_core::model::{Attachment, Endpoint};
use podwire_core::plan::{Removals, plan};
use podwire_core::slice::Slice;
use tracing::info;

use super::{Pods, failure, forget};
use crate::daemon::state::State;
use crate::error::Error;
use crate::wire;

impl Pods {
    /// Serves a DEL. Nothing happens when there is no such attachment.
    ///
    /// # Errors
    /// What cannot be taken back now, with a CNI code.
    pub(in crate::daemon) async fn del(
        &mut self,
        state: &mut State,
        attachment: &Attachment,
    ) -> Result<(), Failure> {
        let Some(endpoint) = state.model.endpoint_of(attachment).cloned() else {
            return Ok(());
        };
        self.release(state, &endpoint).await.map_err(|error| failure(&error))?;
        info!(pod = %endpoint, container = attachment.container_id, "deleted");
        Ok(())
    }

    /// Takes everything of an endpoint back.
    ///
    /// # Errors
    /// That of the first operation which fails.
    pub(super) async fn release(&mut self, state: &mut State, endpoint: &Endpoint) -> Result<(), Error> {
        let mut reached = desired(&state.model, Scope::Endpoint(endpoint));
        let ops = plan(&Slice::default(), &reached, Removals::Allowed);
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
                Err(error) => failed = Some(failure(&error)),
            }
        }
        failed.map_or(Ok(collected), Err)
    }
}
