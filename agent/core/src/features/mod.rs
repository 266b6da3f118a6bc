//! What the kernel and the disk should hold according to the model: one file for each feature.

mod host_ports;
mod limits;
mod networks;
mod nodes;
mod pods;
mod services;
mod this_node;
mod tunnel;

pub use host_ports::{frontend, frontends};
pub use pods::endpoint_entry;
pub use services::{Clients, NotServed, Places, why_not};

use crate::model::{Endpoint, Model, Node};
use crate::services::{ServedPort, ServiceName};
use crate::slice::Slice;

/// The part of the desired state that a caller asks for.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Everything.
    All,
    /// The resources of one pod.
    Endpoint(&'a Endpoint),
    /// The resources of these other nodes. They do not depend on nodes outside this list.
    Nodes(&'a [&'a Node]),
    /// What these services require, with [`Places::of`] the model. It does not depend on services
    /// outside this list, if all are on it that want the same address
    /// ([`crate::services::ServedServices::concerned`]).
    Services(&'a [&'a ServiceName], &'a Places),
}

impl<'a> Scope<'a> {
    fn endpoints(self, model: &'a Model) -> Vec<&'a Endpoint> {
        match self {
            Self::All => model.endpoints.values().collect(),
            Self::Endpoint(endpoint) => vec![endpoint],
            Self::Nodes(_) | Self::Services(..) => Vec::new(),
        }
    }

    fn services(self, model: &'a Model) -> Vec<(&'a ServiceName, &'a Vec<ServedPort>)> {
        match self {
            Self::All => model.services.iter().collect(),
            Self::Endpoint(_) | Self::Nodes(_) => Vec::new(),
            Self::Services(names, _) => {
                names.iter().filter_map(|name| model.services.get_key_value(name)).collect()
            }
        }
    }

    fn nodes(self, model: &'a Model) -> Vec<&'a Node> {
        match self {
            Self::All => model.remote.values().collect(),
            Self::Endpoint(_) | Self::Services(..) => Vec::new(),
            Self::Nodes(nodes) => nodes.to_vec(),
        }
    }

    fn is_all(self) -> bool {
        matches!(self, Self::All)
    }
}

/// Returns the desired state. Without this node's own entry in the node list, it has no entries for
/// nodes and links, and no routes.
pub fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let features = [
        pods::desired,
        limits::desired,
        host_ports::desired,
        networks::desired,
        this_node::desired,
        nodes::desired,
        tunnel::desired,
        services::desired,
    ];
    let mut slice = Slice::default();
    for feature in features {
        slice.extend(feature(model, scope));
    }
    slice
}

#[cfg(test)]
mod tests;
