//! The decisions of the node agent. This crate touches neither the kernel, nor the disk, nor the
//! network.
//!
//! - `model`: what the agent knows.
//! - `features`: what the kernel and the disk should hold according to the model.
//! - `plan`: which operations lead there.
//!
//! Every other module answers one question.

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
pub mod services;
pub mod slice;
pub mod strays;
