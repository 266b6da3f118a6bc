//! Traffic for measurements. Both ends are threads of this process, each in its namespace and on
//! its core.

mod connections;
mod packets;
mod round_trips;
mod stream;

pub(crate) use connections::{Connections, FIRST_PORT as FIRST_CONNECTION_PORT};
pub(crate) use packets::packets_per_second;
pub(crate) use round_trips::{PORT as ROUND_TRIP_PORT, RoundTrips, Transport};
pub(crate) use stream::{Direction, Stream};

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{CpuSet, sched_setaffinity};
use xtask::lab::Ns;

/// The core of both ends when the cost of a path is measured, and of the server of a stream or of a
/// flood of datagrams. Interrupts of these machines go to core 0.
const CORE: usize = 1;
/// The core of the client of a stream or of a flood of datagrams.
const OTHER_CORE: usize = 0;
/// The longest time that a socket waits for the other end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs an action in a namespace, on a thread that is pinned to one core.
fn pinned<T: Send + 'static>(
    ns: &Ns,
    core: usize,
    action: impl FnOnce() -> Result<T> + Send + 'static,
) -> JoinHandle<Result<T>> {
    ns.spawn(move || {
        let mut cores = CpuSet::new();
        cores.set(core);
        sched_setaffinity(None, &cores).with_context(|| format!("stay on core {core}"))?;
        action()
    })
}

/// Returns a UDP socket of a namespace that is connected to a peer.
fn udp_towards(ns: &Ns, peer: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = match peer {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns.enter(|| UdpSocket::bind((any, 0)))?.context("bind the client")?;
    socket.connect(peer).with_context(|| format!("connect to {peer}"))?;
    Ok(socket)
}

/// Waits for a thread and returns its result.
fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the measurement panicked"))?
}

/// Returns the busy time that the kernel has accounted to a core so far, interrupts included.
fn busy_time(core: usize) -> Result<Duration> {
    let name = format!("cpu{core} ");
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let line = text.lines().find_map(|line| line.strip_prefix(&name)).context("/proc/stat lacks a core")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // The columns are user, nice, system, idle, iowait, irq, softirq (proc_stat(5)). USER_HZ is 100
    // on every architecture that matters here.
    let busy: u64 = ticks
        .iter()
        .enumerate()
        .filter(|(column, _)| matches!(column, 0..=2 | 5 | 6))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(Duration::from_millis(busy * 10))
}
