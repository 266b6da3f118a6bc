//! Small datagrams, as many as one core can send.

use std::io::{ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, setsockopt, sockopt};

use super::{CORE, OTHER_CORE, PATIENCE, joined, pinned, udp_towards};
use crate::bench::site::Site;

/// Payload of a frame of 64 bytes: Ethernet 14, IPv4 20, UDP 8. IPv6 has the same payload, so its
/// frames are 20 bytes longer.
const PAYLOAD: usize = 22;
/// Datagrams in one system call. In a batch, the cost of the call itself hardly counts.
const BATCH: usize = 32;
const PORT: u16 = 9100;
/// Receive buffer for datagrams that are not yet counted, bytes.
const BUFFER: usize = 4 << 20;

/// Returns the datagrams per second that arrive while one core sends as many as it can and another
/// core receives them.
pub(crate) fn packets_per_second(site: &Site, turn: Duration) -> Result<f64> {
    let peer = SocketAddr::new(site.address, PORT);
    let receiver = site.server.enter(|| UdpSocket::bind(peer))?.context("bind the receiver")?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER)?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = udp_towards(&site.client, peer)?;
    sender.set_write_timeout(Some(PATIENCE))?;

    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let receiving = pinned(&site.server, CORE, {
        let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
        move || receive(&receiver, &stop, &count)
    });
    let sending = pinned(&site.client, OTHER_CORE, {
        let stop = Arc::clone(&stop);
        move || flood(&sender, &stop)
    });
    // The start does not count: caches are cold, and the receiver's core has to wake up.
    std::thread::sleep(turn / 10);
    let (before, start) = (count.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(turn);
    let (after, elapsed) = (count.load(Ordering::Relaxed), start.elapsed());
    stop.store(true, Ordering::Relaxed);
    joined(sending).context("send")?;
    joined(receiving).context("receive")?;
    Ok((after - before) as f64 / elapsed.as_secs_f64())
}

fn flood(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let payload = [0; PAYLOAD];
    let datagrams = [[IoSlice::new(&payload)]; BATCH];
    let addresses: [Option<SockaddrStorage>; BATCH] = [None; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    while !stop.load(Ordering::Relaxed) {
        match sendmmsg(socket.as_raw_fd(), &mut headers, &datagrams, addresses, [], MsgFlags::empty()) {
            // The receiver does not listen yet, or no longer.
            Ok(_) | Err(nix::Error::ECONNREFUSED | nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

// Use `recv` instead of `recvmmsg`. A receiver that asks for the sender's address runs the cgroup
// programs of all agents on this machine, the other contestants' agents included.
fn receive(socket: &UdpSocket, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    let mut datagram = [0; PAYLOAD];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut datagram) {
            Ok(_) => {
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
