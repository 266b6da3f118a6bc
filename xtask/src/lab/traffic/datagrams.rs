//! Datagrams both ways at a steady rate, counted at both ends: what a disturbance loses shows as a number.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{PATIENCE, Route, bound};
use crate::lab::Ns;

/// Between two datagrams of one end.
const INTERVAL: Duration = Duration::from_millis(1);
/// A busy machine may leave a reader without a CPU for a while.
const RECEIVE_BUFFER: usize = 8 << 20;
/// After the last datagram was sent nothing more comes when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(500);
/// A number, and what makes a packet of usual size.
const SIZE: usize = 100;

/// What one direction has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Datagrams that were to be sent.
    pub sent: u64,
    /// Different ones that arrived.
    pub received: u64,
}

impl Count {
    /// Those that did not arrive.
    pub fn lost(self) -> u64 {
        self.sent - self.received
    }
}

/// 1,000 datagrams a second in each direction, until [`Datagrams::finish`].
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    ends: Option<[JoinHandle<Result<End>>; 2]>,
}

/// What one end has sent and got.
struct End {
    sent: u64,
    received: u64,
}

impl Datagrams {
    /// Begins, and returns when datagrams of both ends arrive at the other.
    ///
    /// # Errors
    /// When none does within ten seconds.
    pub fn start(from: &Ns, to: &Ns, route: Route) -> Result<Self> {
        let bind = |ns: &Ns, address: SocketAddr| -> Result<UdpSocket> {
            let socket = ns
                .enter(|| bound(|| UdpSocket::bind(address)))?
                .with_context(|| format!("bind UDP {address} in {}", ns.name()))?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(socket)
        };
        let server = bind(to, route.listen)?;
        let client = bind(from, SocketAddr::new(route.listen.ip(), 0))?;
        client.connect(route.destination)?;
        // The server learns from the first one, which is not counted, where the client is.
        client.send(&[0])?;
        server.set_read_timeout(Some(PATIENCE))?;
        let (_, peer) = server
            .recv_from(&mut [0; SIZE])
            .with_context(|| format!("UDP from {} to {}", from.name(), route.destination))?;
        server.connect(peer)?;
        let (stop, arrived) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let ends = [client, server].map(|socket| {
            let (stop, arrived) = (Arc::clone(&stop), Arc::clone(&arrived));
            std::thread::spawn(move || run(&socket, &stop, &arrived))
        });
        let datagrams = Self { stop, arrived, ends: Some(ends) };
        datagrams.wait_for(100)?;
        Ok(datagrams)
    }

    /// Waits until so many more have arrived, of both directions together.
    ///
    /// # Errors
    /// When they do not within ten seconds.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let (start, target) = (Instant::now(), self.arrived.load(Ordering::Relaxed) + more);
        while self.arrived.load(Ordering::Relaxed) < target {
            if start.elapsed() > PATIENCE {
                bail!("{} of {target} datagrams have arrived", self.arrived.load(Ordering::Relaxed));
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    /// Ends it and waits for what is under way: from the client to the server, and back.
    ///
    /// # Errors
    /// When an end could not send or receive.
    pub fn finish(mut self) -> Result<[Count; 2]> {
        self.stop.store(true, Ordering::Relaxed);
        let [client, server] = self.ends.take().context("it has ended")?;
        let end = |thread: JoinHandle<Result<End>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        let (client, server) = (end(client)?, end(server)?);
        ensure!(client.sent > 0 && server.sent > 0, "nothing was sent");
        Ok([
            Count { sent: client.sent, received: server.received },
            Count { sent: server.sent, received: client.received },
        ])
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// One end, which sends what is due and takes what comes until then.
fn run(socket: &UdpSocket, stop: &AtomicBool, arrived: &AtomicU64) -> Result<End> {
    let start = Instant::now();
    let (mut sent, mut seen, mut last) = (0, HashSet::new(), Instant::now());
    let mut buffer = [0; SIZE];
    while !stop.load(Ordering::Relaxed) || last.elapsed() < SILENCE {
        if !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_nanos() / INTERVAL.as_nanos();
            while u128::from(sent) < due {
                let mut datagram = [0; SIZE];
                datagram[..8].copy_from_slice(&u64::to_be_bytes(sent));
                // Also one that the kernel refuses is one that does not arrive.
                let _ = socket.send(&datagram);
                sent += 1;
            }
        }
        socket.set_read_timeout(Some(INTERVAL))?;
        // Otherwise nothing for a moment, a strange one, or an error that an earlier one has met.
        if let Ok(SIZE) = socket.recv(&mut buffer) {
            let number = buffer.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
            if number.is_some_and(|number| seen.insert(number)) {
                arrived.fetch_add(1, Ordering::Relaxed);
            }
            last = Instant::now();
        }
    }
    Ok(End { sent, received: seen.len() as u64 })
}
