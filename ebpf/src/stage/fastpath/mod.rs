//! The fast path: known flows, which bypass the host stack. One lookup replaces all others, and
//! also the questions to the kernel's routes.
//!
//! An entry becomes stale after [`KNOWN_FLOW_JIFFIES`](podwire_common::abi::KNOWN_FLOW_JIFFIES),
//! and with the first change of anything that it depends on. Packets other than plain TCP or UDP in
//! the middle of a flow go through all stages.

mod learn;
mod lookup;
mod send;

use podwire_common::{abi::KnownFlow, flow::FlowAddr};

use crate::{
    maps::Known,
    packet::{Ip, PlainIp},
};

pub use learn::{
    learn_answer_in, learn_direct_in, learn_direct_out, learn_local, learn_service_in, learn_service_out,
    learn_tunnel_in, learn_tunnel_out, learn_world_in, learn_world_out,
};
pub use lookup::{destination_of, from_tunnel, of_pod};
pub use send::{from_pod, from_uplink, is_to_neighbour, to_neighbour};

/// A family of IP with a table of known flows.
pub trait KnownIp: PlainIp<FlowAddr: Known> {}

impl<I: PlainIp<FlowAddr: Known>> KnownIp for I {}

/// What is known of a flow of a family.
pub type Entry<I> = KnownFlow<<I as Ip>::FlowAddr>;
/// The key of a flow of a family.
pub type Key<I> = <<I as Ip>::FlowAddr as FlowAddr>::Key;
