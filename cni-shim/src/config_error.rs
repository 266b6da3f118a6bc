//! Errors of a configuration, and the codes that report them to a runtime.

use std::io;

use podwire_cni::protocol::codes;

use crate::error::CniError;
use crate::version::SpecVersion;

/// An error of the configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("the network configuration on standard input is not JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("the network configuration on standard input is not JSON: {0}")]
    NotSkimmed(io::Error),
    #[error("read the network configuration from standard input: {0}")]
    Unread(io::Error),
    #[error("the network configuration on standard input is not a JSON object")]
    NotAnObject,
    #[error("cniVersion {found:?} is not supported; this plugin speaks {}", SpecVersion::list())]
    Version { found: String },
    #[error("{field} is missing")]
    Missing { field: String },
    #[error("{field} is {found}, not {expected}")]
    WrongType { field: String, expected: &'static str, found: String },
    #[error("{field} is {found:?}: {reason}")]
    Invalid { field: String, found: String, reason: String },
}

impl From<ConfigError> for CniError {
    fn from(error: ConfigError) -> Self {
        let code = match error {
            ConfigError::NotJson(_) | ConfigError::NotSkimmed(_) | ConfigError::NotAnObject => {
                codes::DECODING_FAILURE
            }
            ConfigError::Unread(_) => codes::IO_FAILURE,
            ConfigError::Version { .. } => codes::INCOMPATIBLE_VERSION,
            ConfigError::Missing { .. } | ConfigError::WrongType { .. } | ConfigError::Invalid { .. } => {
                codes::INVALID_CONFIGURATION
            }
        };
        CniError::new(code, error.to_string())
    }
}
