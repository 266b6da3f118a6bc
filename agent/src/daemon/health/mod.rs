//! Whether the agent can do its work, as `/readyz` and STATUS report it.

mod firewall;
mod state_folder;

use podwire_cni::protocol::{Failure, codes};
use tokio::sync::watch;
use tracing::{info, warn};

use super::configuration::Configuration;
use super::pods::refuse;
use super::state::State;
use crate::before::Before;
use crate::conditions::Conditions;
use crate::config::Config;
use crate::events::Readiness;
use firewall::Firewall;
use state_folder::StateFolder;

/// Checks that run from time to time, and the receivers of the readiness.
pub(super) struct Health {
    pub(super) state_folder: StateFolder,
    firewall: Firewall,
    readiness: watch::Sender<Readiness>,
}

impl Health {
    /// Creates the state of an agent that is not ready for this reason.
    pub(super) fn new(config: &Config, before: Before, why: String) -> Self {
        Self {
            state_folder: StateFolder::new(before),
            firewall: Firewall::new(config),
            readiness: watch::Sender::new(Readiness::Waiting(why)),
        }
    }

    /// Looks at the host's firewall now.
    pub(super) fn look_at_firewall(&mut self, state: &mut State) {
        self.firewall.look(state);
    }

    /// Looks at the host's firewall if a look is due, and starts a trial of the state folder.
    pub(super) fn tick(&mut self, state: &mut State) {
        self.firewall.tick(state);
        self.state_folder.try_it(state);
    }

    /// Returns a receiver that gets the readiness now and after every change.
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Publishes a changed readiness. Called after every event, before the next one is awaited.
    pub(super) fn tell(&self, conditions: &mut Conditions, configuration: &mut Configuration) {
        if conditions.unready().is_none() {
            configuration.announce(conditions);
        }
        let unready = conditions.unready();
        let readiness = unready.map_or(Readiness::Ready, |why| Readiness::Waiting(why.sentence.to_owned()));
        let changed = self.readiness.send_if_modified(|now| {
            let changed = *now != readiness;
            *now = readiness;
            changed
        });
        match unready {
            _ if !changed => {}
            None => info!("ready"),
            Some(why) => warn!(condition = why.name.name(), "not ready"),
        }
    }
}

/// Checks whether an ADD can be served and would give its pod a network. The error has one of two
/// codes:
///
/// - 51 ("and the pods that are there may have limited connectivity") if the data path itself is in
///   doubt and there are pods. Examples: no uplink is left, or the last attempt to write maps and
///   routes failed. After such a failure the agent still tries an ADD, but the pod may not have its
///   network.
/// - 50 otherwise: pods have their network, or there are none. Examples: the node list was not read
///   yet or lacks this node, the state folder takes no file, no address is free.
pub(super) fn status(state: &State) -> Result<(), Failure> {
    if let Some(why) = state.conditions.status() {
        let (severity, why) = (why.name.severity(), why.sentence);
        let code = match severity.cuts_pods_off() && !state.model.endpoints.is_empty() {
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
    state.executor.pools.has_free().map_err(|error| refuse(codes::UNAVAILABLE, error.to_string()))
}
