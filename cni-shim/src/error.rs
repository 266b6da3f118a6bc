//! The error that the plugin reports to a runtime.

use podwire_cni::protocol::codes;

/// The contents of the error object (CNI specification, section "Error").
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CniError {
    /// The specification's code, or one of the plugin's own.
    pub(crate) code: u32,
    /// What failed, for which object, and what to do.
    pub(crate) message: String,
    /// Additional text after the message, often empty.
    pub(crate) details: String,
}

impl CniError {
    pub(crate) fn new(code: u32, message: impl Into<String>) -> Self {
        CniError { code, message: message.into(), details: String::new() }
    }

    /// Makes the error for a failed file, socket or step.
    pub(crate) fn io(operation: &str, source: std::io::Error) -> Self {
        CniError::new(codes::IO_FAILURE, format!("{operation}: {source}"))
    }

    pub(crate) fn with_details(self, details: impl Into<String>) -> Self {
        CniError { details: details.into(), ..self }
    }
}
