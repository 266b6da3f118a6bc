//! Attempts that do not depend on each other: one that fails does not keep the others from being made.

use tracing::error;

use crate::error::Error;

/// Each failure is told, and the first is what all of them have come to.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    first_error: Option<Error>,
}

impl Attempts {
    /// Takes note of one.
    pub(super) fn note(&mut self, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            error!("{error}");
            self.first_error.get_or_insert(error);
        }
    }

    /// Whether one has failed so far.
    pub(super) fn has_failed(&self) -> bool {
        self.first_error.is_some()
    }

    /// What all have come to.
    pub(super) fn outcome(self) -> Result<(), Error> {
        self.first_error.map_or(Ok(()), Err)
    }
}
