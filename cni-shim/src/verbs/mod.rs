//! The `CNI_COMMAND`s, one file for each verb.

mod add;
mod check;
mod del;
mod gc;
mod status;

use podwire_cni::fault::{self, Step};
use podwire_cni::protocol::codes;
use serde_json::Value;

pub(crate) use add::add;
pub(crate) use check::check;
pub(crate) use del::{del, undo};
pub(crate) use gc::gc;
pub(crate) use status::status;

use crate::config::Config;
use crate::error::CniError;
use crate::version::SpecVersion;

/// Reports that a numbered step is over (docs/design/life-of-a-pod.md).
pub(crate) fn taken(step: Step) -> Result<(), CniError> {
    fault::after(step).map_err(|error| CniError::io(step.what(), error))
}

/// Returns the answer to VERSION: the versions that the plugin speaks.
pub(crate) fn version(input: &[u8]) -> Value {
    crate::result::versions(input)
}

/// Refuses a verb in a version of the specification that did not have it.
fn require_version(config: &Config, command: &str, since: SpecVersion) -> Result<(), CniError> {
    if config.version >= since {
        return Ok(());
    }
    let (since, version) = (since.as_str(), config.version.as_str());
    let message = format!("{command} needs cniVersion {since} or later, not {version}");
    Err(CniError::new(codes::INCOMPATIBLE_VERSION, message))
}
