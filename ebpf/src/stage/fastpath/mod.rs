//! The fast path: known flows, which bypass the host stack. One lookup replaces all others, and
//! also the questions to the kernel's routes.
//!
//! An entry becomes stale after [`KNOWN_FLOW_JIFFIES`](podwire_common::abi::KNOWN_FLOW_JIFFIES),
//! and with the first change of anything that it depends on. Packets other than plain TCP or UDP in
//! the middle of a flow go through all stages.

mod learn;
mod lookup;
mod send;

pub use learn::{
    learn_direct_in, learn_direct_out, learn_local, learn_tunnel_in, learn_tunnel_out, learn_world_in,
    learn_world_out,
};
pub use lookup::{destination_of, from_tunnel, of_pod};
pub use send::{from_pod, from_uplink, is_to_neighbour, to_neighbour};
