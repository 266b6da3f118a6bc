//! Checks whether the state folder takes the files of an ADD, so that a failure is reported before
//! an ADD fails.

use std::time::Instant;

use tokio::task::{JoinError, JoinSet};
use tracing::warn;

use crate::before::Before;
use crate::claim::Claim;
use crate::conditions::ConditionName;
use crate::daemon::state::State;
use crate::error::Error;
use crate::events::Repair;
use crate::files::FileError;
use crate::housekeeping::INTERVAL;

/// What the agent knows of the state folder.
#[derive(Debug)]
pub(in crate::daemon) struct StateFolder {
    /// At most one write, so that a disk that hangs blocks only one thread.
    writing: JoinSet<Result<(), FileError>>,
    asked: Option<Instant>,
    /// State of the node before the agent changed it, as last read from the state folder.
    before: Before,
}

impl StateFolder {
    /// Creates the state for a folder that has not been tried yet.
    pub(super) fn new(before: Before) -> Self {
        Self { writing: JoinSet::new(), asked: None, before }
    }

    /// Returns the outcome of the last trial. `None`: no trial is in progress.
    pub(in crate::daemon) async fn outcome(&mut self) -> Option<Result<Result<(), FileError>, JoinError>> {
        self.writing.join_next().await
    }

    /// Starts a trial: another thread writes as much as an ADD does. [`Self::outcome`] returns the
    /// result.
    pub(in crate::daemon) fn try_it(&mut self, state: &mut State) {
        let folder = self;
        if folder.writing.is_empty() {
            folder.asked = Some(Instant::now());
            folder.writing.spawn_blocking(state.executor.store.trial());
        } else if folder.asked.is_some_and(|asked| asked.elapsed() >= INTERVAL) {
            let why = format!(
                "the disk of the state folder {} has not answered for more than {} s",
                state.config.places.state_dir.display(),
                INTERVAL.as_secs()
            );
            state.conditions.set(ConditionName::StateFolder, why);
        }
    }

    /// Takes the outcome of a trial. Makes the state folder again if another tool has removed it.
    pub(in crate::daemon) fn take_trial(
        &mut self,
        state: &mut State,
        outcome: Result<Result<(), FileError>, JoinError>,
    ) {
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let outcome = match state.executor.store.is_there() {
            true => outcome.map_err(Error::from),
            false => self.restore(state),
        };
        if outcome.is_ok() {
            self.remember(state);
        }
        let problem = outcome.err();
        state.conditions.update(
            ConditionName::StateFolder,
            problem.map(|error| format!("the agent cannot write to the state folder or add pods: {error}")),
        );
    }

    /// Reads what the agent has written about the node's earlier state, so that a removed folder gets
    /// it again.
    pub(in crate::daemon) fn remember(&mut self, state: &State) {
        let before = Before::load(&state.config.places.state_dir);
        if let Some(before) = before.ok().filter(|_| state.executor.store.is_there()) {
            self.before = before;
        }
    }

    fn restore(&self, state: &mut State) -> Result<(), Error> {
        let places = &state.config.places;
        state.executor.store.make_again(&places.state_dir)?;
        Claim::own(&places.bpf_dir)?.save(&places.state_dir)?;
        if !(self.before.switches.is_empty() && self.before.without_clsact.is_empty()) {
            self.before.save(&places.state_dir)?;
        }
        for last in state.executor.pools.last() {
            state.executor.store.save_last_address(last)?;
        }
        for endpoint in state.model.endpoints.values() {
            state.executor.store.save(endpoint)?;
        }
        warn!(
            path = %state.config.places.state_dir.display(),
            endpoints = state.model.endpoints.len(),
            "another tool removed the state folder: the agent made it again with its contents"
        );
        state.count_repairs(Repair::StateFolder, 1);
        Ok(())
    }
}
