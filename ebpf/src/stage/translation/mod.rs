//! What every kind of address translation shares: finding one, making both of its halves, choosing a port.

mod attempt;
mod entries;
mod establish;

pub use entries::{begin, check, is_node_port, of, remove, reserve, touch};
pub use establish::establish;
