//! New connections, one after the other. The server closes each connection as soon as it has
//! accepted it, and the client waits for that. So neither end runs ahead of the other, and no queue
//! of connections overflows.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{CORE, PATIENCE, joined, pinned};
use crate::bench::site::Site;

/// The first server port. Each turn uses a port of its own, so that its connections do not meet
/// leftovers of an earlier turn.
pub(crate) const FIRST_PORT: u16 = 10_000;

/// A client that connects and closes, and a server that accepts. Both run on one core.
pub(crate) struct Connections<'a> {
    site: &'a Site,
    next_port: u16,
}

impl<'a> Connections<'a> {
    pub(crate) fn new(site: &'a Site) -> Self {
        Self::from_port(site, FIRST_PORT)
    }

    /// As [`Self::new`], with another first port: another client has used the server's first ones.
    pub(crate) fn from_port(site: &'a Site, port: u16) -> Self {
        Self { site, next_port: port }
    }

    /// Returns the connections per second. A connection lasts from the client's SYN to the client's
    /// FIN.
    pub(crate) fn measure(&mut self, turn: Duration) -> Result<f64> {
        let peer = SocketAddr::new(self.site.address, self.next_port);
        self.next_port += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let listen = SocketAddr::new(self.site.listen, peer.port());
        let server = serve(self.site, listen, Arc::clone(&stop))?;
        let rate = joined(pinned(&self.site.client, CORE, move || {
            let start = Instant::now();
            let mut connections = 0u64;
            while start.elapsed() < turn {
                let mut stream =
                    TcpStream::connect(peer).with_context(|| format!("after {connections} connections"))?;
                ensure!(stream.read(&mut [0])? == 0, "the server has sent something");
                connections += 1;
            }
            Ok(connections as f64 / start.elapsed().as_secs_f64())
        }));
        stop.store(true, Ordering::Relaxed);
        // One more connection, to wake up the server.
        let woken = self.site.client.enter(|| TcpStream::connect_timeout(&peer, PATIENCE))?;
        drop(woken);
        joined(server).context("accept")?;
        rate
    }
}

fn serve(site: &Site, address: SocketAddr, stop: Arc<AtomicBool>) -> Result<JoinHandle<Result<()>>> {
    let listener = site.server.enter(|| TcpListener::bind(address))?.context("listen")?;
    Ok(pinned(&site.server, CORE, move || {
        while !stop.load(Ordering::Relaxed) {
            drop(listener.accept()?);
        }
        Ok(())
    }))
}
