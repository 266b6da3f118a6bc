//! Node objects over HTTP: what the agent's source makes of an API server, and of its faults.
//!
//! Where a cluster's own binaries are at hand (`xtask::envtest`), whatever needs no fault on demand is asked of those, too.
//! No root, no packets. The same source feeds the agents of the network tests (`netns`).

mod cache;
mod cluster;
mod condition;
mod faults;
mod lists;
mod restarts;
mod rights;
mod servers;
mod tokens;
mod watching;
