//! Node objects over HTTP: how the agent's node source handles an API server and its faults.
//!
//! Where a cluster's own binaries are at hand (`xtask::envtest`), they run every test that needs no
//! fault on demand, too. No test needs root or sends packets. The agents of the network tests
//! (`netns`) use the same source.

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
