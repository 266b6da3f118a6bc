//! Whether the state folder takes what an ADD has to write. What fails is told before an ADD has to fail.

use std::time::Instant;

use tokio::task::{JoinError, JoinSet};
use tracing::warn;

use super::Daemon;
use crate::before::Before;
use crate::claim::Claim;
use crate::conditions::ConditionName;
use crate::error::Error;
use crate::events::Repair;
use crate::housekeeping::INTERVAL;
use crate::ipam::Pool;

/// What is known of the state folder.
#[derive(Debug, Default)]
pub(super) struct StateFolder {
    /// One write at most: a disk that hangs costs one thread.
    writing: JoinSet<Result<(), Error>>,
    asked: Option<Instant>,
}

impl StateFolder {
    /// The outcome of the last trial. `None`: there is none to wait for.
    pub(super) async fn outcome(&mut self) -> Option<Result<Result<(), Error>, JoinError>> {
        self.writing.join_next().await
    }
}

impl Daemon {
    /// Has another thread write as much as an ADD does. The answer is an event of its own.
    pub(super) fn try_state_folder(&mut self) {
        let folder = &mut self.state_folder;
        if folder.writing.is_empty() {
            folder.asked = Some(Instant::now());
            folder.writing.spawn_blocking(self.store.trial());
        } else if folder.asked.is_some_and(|asked| asked.elapsed() >= INTERVAL) {
            let why = format!(
                "the disk of the state folder {} has not answered for more than {} s",
                self.config.places.state_dir.display(),
                INTERVAL.as_secs()
            );
            self.conditions.set(ConditionName::StateFolder, why);
        }
    }

    /// Takes the answer of the state folder. One that somebody has removed is made again.
    pub(super) fn take_trial(&mut self, outcome: Result<Result<(), Error>, JoinError>) {
        let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let outcome = match self.store.is_there() {
            true => outcome,
            false => self.restore_state_folder(),
        };
        if let (Ok(()), Ok(before)) = (&outcome, Before::load(&self.config.places.state_dir)) {
            self.before = before;
        }
        let problem = outcome.err();
        self.conditions.update(
            ConditionName::StateFolder,
            problem.map(|error| format!("the state folder cannot be written, and no pod be added: {error}")),
        );
    }

    fn restore_state_folder(&mut self) -> Result<(), Error> {
        let places = &self.config.places;
        self.store.make_again(&places.state_dir)?;
        Claim::own(&places.bpf_dir)?.save(&places.state_dir)?;
        if !(self.before.switches.is_empty() && self.before.without_clsact.is_empty()) {
            self.before.save(&places.state_dir)?;
        }
        let last = self.pool.as_ref().and_then(Pool::last);
        last.map_or(Ok(()), |last| self.store.save_last_address(last))?;
        for endpoint in self.model.endpoints.values() {
            self.store.save(endpoint)?;
        }
        warn!(
            path = %places.state_dir.display(),
            endpoints = self.model.endpoints.len(),
            "somebody has removed the state folder: made again, with all that was in it"
        );
        self.count_repairs(Repair::StateFolder, 1);
        Ok(())
    }
}
