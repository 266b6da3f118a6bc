//! STATUS and GC: what a runtime asks of the node, and not for one pod.

use std::collections::BTreeSet;

use podwire_cni::protocol::{Failure, Gc, codes};
use podwire_core::ipam::Pool;
use podwire_core::model::Endpoint;
use tracing::info;

use super::Daemon;
use super::calls::{failure, refuse};
use crate::wire;

impl Daemon {
    /// Whether an ADD can be served, and a pod would have its network.
    ///
    /// 51 ("and the pods that are there may have limited connectivity") when the data path itself is in doubt: no uplink is left, or what
    /// the maps and routes should hold could not be written at the last try. An ADD would still be tried in the latter case, but nobody can
    /// vouch for its pod. 50 for all the rest, pods have their network meanwhile: a Node list that was not read yet or that lacks
    /// this node, a state folder that takes no file, no free address. 50 also where there is no pod that could be cut off.
    pub(super) fn status(&self) -> Result<(), Failure> {
        if let Some(why) = self.conditions.status() {
            let (severity, why) = (why.name.severity(), why.sentence);
            let code = match severity.cuts_pods_off() && !self.model.endpoints.is_empty() {
                true => codes::UNAVAILABLE_AND_LIMITED,
                false => codes::UNAVAILABLE,
            };
            let message = match severity {
                severity if severity.cuts_pods_off() => {
                    format!("the node's network is not as it should be: {why}")
                }
                severity if severity.refuses_adds() => format!("the agent is not ready: {why}"),
                _ => why.to_owned(),
            };
            return Err(refuse(code, message));
        }
        let free = self.executor.pool.as_ref().map_or(Ok(()), Pool::has_free);
        free.map_err(|error| refuse(codes::UNAVAILABLE, error.to_string()))
    }

    /// Takes back every attachment of the network that is not to stay. What fails does not keep the others
    /// from being taken. An endpoint whose file was lost has no known network, so it stays.
    pub(super) async fn collect_garbage(&mut self, gc: &Gc) -> Result<u32, Failure> {
        let valid: BTreeSet<_> = gc.valid.iter().map(wire::attachment).collect();
        let is_garbage = |endpoint: &&Endpoint| {
            endpoint.network.as_ref() == Some(&gc.network) && !valid.contains(&endpoint.attachment)
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
