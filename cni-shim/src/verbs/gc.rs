//! GC: have the agent take back what the runtime knows no more.

use podwire_cni::protocol::Gc;

use super::require_version;
use crate::agent::{Agent, REQUEST_DEADLINE};
use crate::config::Config;
use crate::error::CniError;
use crate::note;
use crate::version::SpecVersion;

/// Takes back the network's attachments that `cni.dev/valid-attachments` lacks, their links with them. Which links belong to which network only the
/// agent knows, so without it nothing is done.
pub(crate) fn gc(config: &Config) -> Result<(), CniError> {
    require_version(config, "GC", SpecVersion::V1_1_0)?;
    let gc = Gc { network: config.network.clone(), valid: config.valid_attachments()? };
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    let collected = agent.gc(gc)?;
    if collected > 0 {
        note(&format!("{collected} attachments that the runtime knows no more were released"));
    }
    Ok(())
}
