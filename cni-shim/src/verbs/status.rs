//! STATUS: can an ADD be served now?

use podwire_cni::protocol::codes;

use super::require_version;
use crate::agent::{Agent, AgentError, REQUEST_DEADLINE};
use crate::config::Config;
use crate::error::CniError;
use crate::version::SpecVersion;

/// Fails with the reason when an ADD cannot be served: code 50, or 51 when existing pods may be cut
/// off too. Only the agent can tell the latter. While the agent is away or does not answer, the
/// data path continues, so the code is 50.
pub(crate) fn status(config: &Config) -> Result<(), CniError> {
    require_version(config, "STATUS", SpecVersion::V1_1_0)?;
    let agent = Agent { socket: &config.socket, deadline: REQUEST_DEADLINE };
    agent.status().map_err(|error| match error {
        AgentError::Refused(failure) if failure.code == codes::UNAVAILABLE_AND_LIMITED => {
            CniError::new(failure.code, failure.message)
        }
        other => CniError::new(codes::UNAVAILABLE, other.to_string()),
    })
}
