//! STATUS and GC: what a runtime asks of the node, and not for one pod.

use podwire_cni::protocol::{Failure, Gc, codes};
use tracing::info;

use super::calls::{failure, refuse};
use super::{Daemon, Readiness};
use crate::model::Endpoint;

impl Daemon {
    pub(super) fn status(&self) -> Result<(), Failure> {
        match &*self.readiness.borrow() {
            Readiness::Ready => Ok(()),
            Readiness::Waiting(why) => {
                Err(refuse(codes::UNAVAILABLE, format!("the agent is not ready: {why}")))
            }
        }
    }

    /// Takes back every attachment of the network that is not to stay. What fails does not keep the others from being taken.
    pub(super) async fn collect_garbage(&mut self, gc: &Gc) -> Result<u32, Failure> {
        let is_garbage = |endpoint: &&Endpoint| {
            endpoint.network.as_ref() == Some(&gc.network) && !gc.valid.contains(&endpoint.attachment)
        };
        let garbage: Vec<_> = self.model.endpoints.values().filter(is_garbage).cloned().collect();
        let (mut collected, mut failed) = (0, None);
        for endpoint in garbage {
            match self.release(&endpoint).await {
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
