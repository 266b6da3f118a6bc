//! Whether anything of what [`Links::host`](super::Links::host) and [`Links::filters`](super::Links::filters) list has changed: the kernel tells, so that a node with
//! thousands of routes need not list them all to know that they are as they were.

use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

use super::LinkError;
use crate::files::FileError;

/// Routing rules are not listed, but with other rules the kernel may route otherwise. A next hop object takes its routes with it, without
/// a notice of theirs. `Tc`: filters and queueing disciplines.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Nexthop,
    MulticastGroup::Tc,
];

/// The kernel's notices, in the network namespace of the thread that made this.
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
            let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
            socket.bind(&SocketAddr::new(0, groups))?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(FileError::of("open", "the kernel's notices of routes and devices"))?,
        })
    }

    /// Whether anything has changed since the last question, by this agent itself or by others. What has changed is not
    /// looked at.
    pub fn any(&mut self) -> bool {
        let mut changed = false;
        let mut start_of_a_notice = [0; 1];
        loop {
            match self.socket.recv(&mut &mut start_of_a_notice[..], 0) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return changed,
                // There were more than the socket holds.
                Err(_) => return true,
            }
        }
    }
}
