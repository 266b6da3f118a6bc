//! Common parts of all kinds of address translation: finding a translation, adding both of its
//! halves, choosing a port.

mod attempt;
mod entries;
mod establish;

pub use entries::{begin, check, is_node_port, of, remove, reserve, touch};
pub use establish::establish;
