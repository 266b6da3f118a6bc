//! What the plugin and the agent agree on: the protocol over the agent's Unix socket, and what a limit is to the kernel.

pub mod fault;
pub mod protocol;
pub mod token_bucket;
