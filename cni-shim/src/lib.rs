//! The shared part of the plugin and the agent: the protocol over the agent's Unix socket, and a
//! pod's bandwidth limit in the kernel's form.

pub mod fault;
pub mod protocol;
pub mod token_bucket;
