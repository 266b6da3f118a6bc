//! Node objects over HTTP: what the agent's source makes of an API server, and of its faults.
//!
//! No root, no packets. The same source feeds the agents of the network tests (`netns`).

mod cache;
mod condition;
mod faults;
mod lists;
mod tokens;
mod watching;
