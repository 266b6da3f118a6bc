//! The kernel's neighbour table: which neighbours have answered for which addresses.

use std::net::IpAddr;

use futures_util::TryStreamExt as _;
use podwire_core::other_pods::Neighbour;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::{LinkError, Links, netlink};

impl Links {
    /// Returns the neighbours of both families that have answered, and the permanent entries that an
    /// operator or a program has added.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, LinkError> {
        let mut entries = self.handle.neighbours().get().execute();
        let mut neighbours = Vec::new();
        while let Some(message) = entries.try_next().await.map_err(netlink("list neighbours"))? {
            neighbours.extend(neighbour(&message));
        }
        Ok(neighbours)
    }

    /// Makes the kernel check a stale neighbour, as if a packet had been sent to it. Within ten
    /// seconds the neighbour has answered, or its entry has failed.
    ///
    /// # Errors
    /// [`LinkError::Netlink`].
    pub async fn ask_neighbour(&self, neighbour: &Neighbour) -> Result<(), LinkError> {
        let request = self.handle.neighbours().add(neighbour.device, neighbour.address);
        let request = request.state(NeighbourState::None).flags(NeighbourFlags::Use).replace();
        let operation = format!("ask for the neighbour {}", neighbour.address);
        request.execute().await.map_err(netlink(operation))
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let is_there = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    );
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let is_stale = message.header.state == NeighbourState::Stale;
    Some(Neighbour { device: message.header.ifindex, address: address.filter(|_| is_there)?, is_stale })
}
