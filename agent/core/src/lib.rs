//! What the node agent decides, without touching the world.
//!
//! `model` is what the agent knows. `features` say what the kernel and the disk should hold because
//! of it, and `plan` which operations lead there. All else here answers one question each.

pub mod change;
pub mod cluster;
pub mod features;
pub mod forward_policy;
pub mod host;
pub mod host_ports;
pub mod ipam;
pub mod ipsec;
pub mod model;
pub mod node_links;
pub mod other_pods;
pub mod plan;
pub mod recovery;
pub mod slice;
pub mod strays;
