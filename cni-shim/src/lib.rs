//! The shared part of the plugin and the agent: the protocol over the agent's Unix socket, and the
//! kernel's form of a pod's limit.

pub mod fault;
pub mod protocol;
pub mod token_bucket;
