//! Datagrams in both directions at a steady rate, counted at both ends: the number of lost
//! datagrams shows the effect of a disturbance.

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

/// The interval between two datagrams of one end.
const INTERVAL: Duration = Duration::from_millis(1);
/// Receive buffer, bytes: on a busy machine, a reader may have no CPU for a while.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The silence after which an end stops, once the last datagram has been sent.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes of a datagram: its number, and padding to the size of a usual packet.
const SIZE: usize = 100;

/// The result of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Datagrams that were due and given to the kernel.
    pub sent: u64,
    /// Different datagrams that arrived.
    pub received: u64,
}

impl Count {
    /// Returns the number of datagrams that did not arrive.
    pub fn lost(self) -> u64 {
        self.sent - self.received
    }
}

/// A flow of 1,000 datagrams a second in each direction, until [`Datagrams::finish`].
#[derive(Debug)]
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    ends: Option<[JoinHandle<Result<End>>; 2]>,
}

/// The datagrams of one end.
struct End {
    sent: u64,
    received: u64,
}

impl Datagrams {
    /// Starts the flow, and returns once 100 datagrams have arrived, both directions together.
    ///
    /// # Errors
    /// When a socket cannot be bound, or when the datagrams do not arrive within ten seconds.
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
        // The server learns the client's address from the first datagram, which is not counted.
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

    /// Waits until this number of further datagrams has arrived, both directions together.
    ///
    /// # Errors
    /// When they do not arrive within ten seconds.
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

    /// Stops sending, and waits for the datagrams on their way. Returns the counts from client to
    /// server, and from server to client.
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

/// Runs one end: it sends the datagrams that are due, and receives until the next one is due.
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
                // A datagram that the kernel refuses counts as one that does not arrive.
                let _ = socket.send(&datagram);
                sent += 1;
            }
        }
        socket.set_read_timeout(Some(INTERVAL))?;
        // Ignore all else: a timeout, a datagram of another size, or an ICMP error for an earlier
        // datagram.
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
