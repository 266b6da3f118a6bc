//! What each `CNI_COMMAND` does, one file per verb.

mod add;
mod check;
mod del;

use podwire_cni::fault::{self, Step};
use serde_json::Value;

use crate::error::CniError;

pub(crate) use add::add;
pub(crate) use check::check;
pub(crate) use del::{del, undo};

/// A numbered step is over (ARCHITECTURE.md, "Life of a pod").
pub(crate) fn taken(step: Step) -> Result<(), CniError> {
    fault::after(step).map_err(|error| CniError::io(step.what(), error))
}

/// VERSION: what the plugin speaks.
pub(crate) fn version(input: &[u8]) -> Value {
    crate::result::versions(input)
}
