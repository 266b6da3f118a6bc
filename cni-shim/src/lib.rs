//! What the plugin and the agent agree on: the protocol over the agent's Unix socket.

pub mod fault;
pub mod protocol;
