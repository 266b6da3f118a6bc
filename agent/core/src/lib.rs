//! What the node agent decides, without touching the world.
//!
//! `model` is what the agent knows. `desired` says what the kernel should hold because of it, and
//! `diff` which operations lead there. All else here answers one question each.

pub mod cluster;
pub mod desired;
pub mod diff;
pub mod forward_policy;
pub mod host;
pub mod host_ports;
pub mod ipam;
pub mod model;
pub mod other_pods;
pub mod recovery;
pub mod strays;
