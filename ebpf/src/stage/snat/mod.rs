//! SNAT: pods' flows to the world get the address of the uplink that the route chose. This node's
//! own flows keep their addresses.

mod back;
mod host;
mod into_tunnel;
mod out;
mod past_stack;

pub use back::back;
pub use host::host_out;
pub use into_tunnel::{into_tunnel, is_answer_from_tunnel};
pub use out::out;
pub use past_stack::{from_pod, to_known_destination};
