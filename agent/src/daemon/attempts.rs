//! Attempts that do not depend on each other: if one fails, the others are still made.

use tracing::error;

use crate::error::Error;

/// A number of attempts. Each failure is logged, and the first one is the outcome of all.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    first_error: Option<Error>,
}

impl Attempts {
    /// Records the outcome of one attempt.
    pub(super) fn note(&mut self, outcome: Result<(), Error>) {
        if let Err(error) = outcome {
            error!("{error}");
            self.first_error.get_or_insert(error);
        }
    }

    /// Returns whether an attempt has failed so far.
    pub(super) fn has_failed(&self) -> bool {
        self.first_error.is_some()
    }

    /// Returns the outcome of all attempts.
    pub(super) fn outcome(self) -> Result<(), Error> {
        self.first_error.map_or(Ok(()), Err)
    }
}
