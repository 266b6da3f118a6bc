//! What is known of a flow that goes past the host stack: one lookup in place of all others, and of what they are asked of.
//!
//! An entry holds for a part of a second, and ends with the first change of anything that it was made of. What is no plain TCP or
//! UDP packet in the midst of its flow goes the whole way through the stages.

mod learn;
mod lookup;
mod send;

pub use learn::{
    learn_direct_in, learn_direct_out, learn_local, learn_tunnel_in, learn_tunnel_out, learn_world_in,
    learn_world_out,
};
pub use lookup::{destination_of, from_tunnel, of_pod};
pub use send::{from_pod, from_uplink, is_to_neighbour, to_neighbour};
