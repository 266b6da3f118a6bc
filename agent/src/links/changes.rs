//! Tells whether anything has changed that [`Links::host`](super::Links::host) and
//! [`Links::filters`](super::Links::filters) list, except IPsec policies.
//! [`Notices`](super::Notices) reports changes of these. The kernel sends notices of changes, so a
//! node with thousands of routes does not have to list all of them to find out that nothing
//! changed.

use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::{LinkError, mask};
use crate::files::FileError;

/// The groups of notices. Some of them need a reason:
///
/// - `Ipv4Rule`, `Ipv6Rule`: the agent does not list routing rules, but other rules can make the kernel route
///   differently.
/// - `Nexthop`: a next hop object that is removed takes its routes with it, and the kernel sends no
///   notices of these routes.
/// - `Tc`: filters and queueing disciplines.
const GROUPS: [MulticastGroup; 9] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
    MulticastGroup::Tc,
];

/// The socket for the kernel's notices, in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Changes {
    socket: Socket,
}

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`LinkError::File`] when the socket cannot be opened.
    pub fn listen() -> Result<Self, LinkError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&SocketAddr::new(0, mask(&GROUPS)))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(FileError::of("open", "the kernel's notices of routes and devices"))?,
        })
    }

    /// Returns whether anything has changed since the last call, by this agent or by others.
    /// Discards the notices without decoding them.
    pub fn any(&mut self) -> bool {
        let mut changed = false;
        let mut start_of_a_notice = [0; 1];
        loop {
            match self.socket.recv(&mut &mut start_of_a_notice[..], 0) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return changed,
                // The socket had no room for all notices.
                Err(_) => return true,
            }
        }
    }
}
