//! What each `CNI_COMMAND` does, one file per verb.

mod add;
mod check;
mod del;

use serde_json::Value;

pub(crate) use add::add;
pub(crate) use check::check;
pub(crate) use del::{del, undo};

/// VERSION: what the plugin speaks.
pub(crate) fn version(input: &[u8]) -> Value {
    crate::result::versions(input)
}
