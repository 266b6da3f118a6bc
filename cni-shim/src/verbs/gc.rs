//! GC: asks the agent to release attachments that the runtime no longer knows.

use podwire_cni::protocol::Gc;

use super::require_version;
use crate::agent::{Agent, REQUEST_DEADLINE};
use crate::config::Config;
use crate::error::CniError;
use crate::note;
use crate::version::SpecVersion;

/// Releases the network's attachments that are not in `cni.dev/valid-attachments`, and their links.
/// Only the agent knows which links belong to which network, so without the agent nothing happens.
pub(crate) fn gc(config: &Config) -> Result<(), CniError> {
    require_version(config, "GC", SpecVersion::V1_1_0)?;
    let gc = Gc { network: config.network.clone(), valid: config.valid_attachments()? };
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    let collected = agent.gc(gc)?;
    if collected > 0 {
        note(&format!("the agent released {collected} attachments that the runtime no longer knows"));
    }
    Ok(())
}
