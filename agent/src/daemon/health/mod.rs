//! Whether the agent can do what it is there for: what `/readyz` and STATUS tell.

mod firewall;
mod state_folder;

use podwire_cni::protocol::{Failure, codes};
use podwire_core::ipam::Pool;
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

/// What is looked at from time to time, and who wants to know whether the agent is ready.
pub(super) struct Health {
    pub(super) state_folder: StateFolder,
    firewall: Firewall,
    readiness: watch::Sender<Readiness>,
}

impl Health {
    /// Not ready, for this reason.
    pub(super) fn new(config: &Config, before: Before, why: String) -> Self {
        Self {
            state_folder: StateFolder::new(before),
            firewall: Firewall::new(config),
            readiness: watch::Sender::new(Readiness::Waiting(why)),
        }
    }

    /// Looks at the host's firewall now.
    pub(super) fn look_at_firewall(&mut self, conditions: &mut Conditions) {
        self.firewall.look(conditions);
    }

    /// Looks at the host's firewall when it is time, and has the state folder tried.
    pub(super) fn tick(&mut self, state: &mut State) {
        self.firewall.tick(&mut state.conditions);
        self.state_folder.try_it(state);
    }

    /// Whether the agent is ready, now and after every change.
    pub(super) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Tells what has changed. After every event, and before the next one is waited for.
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

/// Whether an ADD can be served, and a pod would have its network.
///
/// 51 ("and the pods that are there may have limited connectivity") when the data path itself is in doubt: no uplink is left, or what
/// the maps and routes should hold could not be written at the last try. An ADD would still be tried in the latter case, but nobody can
/// vouch for its pod. 50 for all the rest, pods have their network meanwhile: a Node list that was not read yet or that lacks
/// this node, a state folder that takes no file, no free address. 50 also where there is no pod that could be cut off.
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
    let free = state.executor.pool.as_ref().map_or(Ok(()), Pool::has_free);
    free.map_err(|error| refuse(codes::UNAVAILABLE, error.to_string()))
}
