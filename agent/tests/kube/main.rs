//! Objects over HTTP: how the agent's sources of nodes and services handle an API server and its
//! faults.
//!
//! If `xtask::envtest` finds etcd and kube-apiserver, the tests that use [`servers::kinds`] also
//! run against them. No test needs root or sends packets. The agents of the network tests (`netns`)
//! use the same source.

mod cache;
mod cluster;
mod condition;
mod faults;
mod in_pod;
mod lists;
mod node_events;
mod restarts;
mod rights;
mod servers;
mod services;
mod tokens;
mod watching;
