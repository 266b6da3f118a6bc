//! Connected UDP sockets of the node's own processes whose backend no longer serves. Nothing else
//! tells such a process that nobody answers any more.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use podwire_common::abi::{
    CLIENTS_INSIDE, Frontend, NODE_ADDRESS, NODE_LOCAL, RedirectedSocket, SERVICE_NOT_FOR_PROCESSES,
    SOCKET_ASKED, Service, ServingKey, SocketAddress,
};
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;
use podwire_common::names::maps as names;
use tracing::{error, info, warn};

use super::error::DataplaneError;
use super::maps::{Maps, map_error};
use crate::socket_diag::Connected;

/// The time between two looks at the sockets. Endpoints of a large cluster change all the time.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells the closer that services have changed.
#[derive(Clone, Debug)]
pub struct Wake(SyncSender<()>);

impl Wake {
    /// Does so. Never waits.
    pub fn wake(&self) {
        // One that waits already is enough.
        let _ = self.0.try_send(());
    }
}

/// Closes the sockets, with handles of the tables of its own.
pub struct SocketCloser {
    maps: Maps,
    changes: Receiver<()>,
}

impl Maps {
    /// Returns a closer of sockets, and what wakes it. It runs beside the owner of state, which never
    /// waits for the kernel's list of sockets.
    ///
    /// # Errors
    /// [`DataplaneError::Map`].
    pub fn socket_closer(&self) -> Result<(SocketCloser, Wake), DataplaneError> {
        let (sender, changes) = sync_channel(1);
        Ok((SocketCloser { maps: self.another()?, changes }, Wake(sender)))
    }
}

impl SocketCloser {
    /// Looks after each change of services, until nobody can tell of changes. Ends also if the kernel
    /// cannot close sockets.
    pub fn run(self) {
        while self.changes.recv().is_ok() {
            match self.close() {
                // Without the module udp_diag, the kernel finds nobody to ask.
                Err(refused)
                    if matches!(refused.kind(), io::ErrorKind::Unsupported | io::ErrorKind::NotFound) =>
                {
                    warn!(
                        "this kernel cannot close sockets of other processes (it was built without INET_DIAG_DESTROY or INET_UDP_DIAG): a process that has connected a UDP socket to a service keeps its backend after the backend has gone, until the process connects again"
                    );
                    return;
                }
                Err(error) => error!("cannot look for sockets whose backend no longer serves: {error}"),
                Ok(()) => {}
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn close(&self) -> io::Result<()> {
        let (mut closed, mut example) = (0_u32, None);
        for socket in Connected::all()? {
            let Some(asked) = self.is_stale(&socket).map_err(io::Error::other)? else { continue };
            if socket.abort()? {
                closed += 1;
                example = Some((asked, socket.peer()));
            }
        }
        if let Some((asked, backend)) = example {
            info!(
                closed, service = %asked, %backend,
                "closed connected UDP sockets of this node's processes, because their backends no longer serve (the fields name one of them)"
            );
        }
        Ok(())
    }

    /// Returns the service's address that a process has asked for, if the socket's backend no longer
    /// serves and the service has others. Without others, the socket stays, as flows of pods do: the
    /// backend may come back.
    fn is_stale(&self, socket: &Connected) -> Result<Option<std::net::SocketAddr>, DataplaneError> {
        let peer = socket.peer();
        let (address, port) = (Addr::from(peer.ip()), Be16::new(peer.port()));
        let key =
            RedirectedSocket { cookie: socket.cookie(), address, port, kind: SOCKET_ASKED, reserved: [0; 5] };
        let asked = found(self.maps.redirected_sockets.get(&key, 0), names::REDIRECTED_SOCKETS)?;
        let Some(asked) = asked else { return Ok(None) };
        let Some(service) = self.service(&asked)? else { return Ok(None) };
        let is_served = service.flags & SERVICE_NOT_FOR_PROCESSES == 0 && service.refusal().is_none();
        if !is_served || service.backends == 0 {
            return Ok(None);
        }
        let key = ServingKey { service: service.id, address, port, reserved: [0; 6] };
        let serves = found(self.maps.serving.get(&key, 0), names::SERVING)?.is_some();
        Ok((!serves).then(|| std::net::SocketAddr::new(asked.address.into(), asked.port.get())))
    }

    /// Returns the service of UDP that has an address, as the programs look it up. `None` also for a
    /// hostPort: it comes first.
    fn service(&self, asked: &SocketAddress) -> Result<Option<Service>, DataplaneError> {
        // Only the node's own addresses have hostPorts of any address, and NodePorts.
        let any = if asked.address.is_v4() { Addr::from_v4([0; 4]) } else { Addr::UNSPECIFIED };
        let any = Some(any).filter(|_| is_own(&self.maps, asked.address));
        let key = |address| Frontend {
            address,
            port: asked.port,
            protocol: protocol::UDP,
            clients: CLIENTS_INSIDE,
        };
        let keys: Vec<_> = [asked.address].into_iter().chain(any).map(key).collect();
        for key in &keys {
            if found(self.maps.frontends.get(key, 0), names::FRONTENDS)?.is_some() {
                return Ok(None);
            }
        }
        for key in &keys {
            if let Some(service) = found(self.maps.services.get(key, 0), names::SERVICES)? {
                return Ok(Some(service));
            }
        }
        Ok(None)
    }
}

/// Returns whether an address is the node's own. A loopback address counts.
fn is_own(maps: &Maps, address: Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    let is_loopback = std::net::IpAddr::from(address).is_loopback();
    is_loopback || maps.nodes.get(&Key::new(128, address.into()), 0).is_ok_and(|node| node.flags & OWN == OWN)
}

fn found<T>(entry: Result<T, MapError>, map: &'static str) -> Result<Option<T>, DataplaneError> {
    match entry {
        Ok(entry) => Ok(Some(entry)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(map_error("read", map)(error)),
    }
}
