//! UDP between namespaces.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Exchange, PATIENCE, Route, bound, pattern, uninterrupted, unspecified};
use crate::lab::Ns;

/// Sends one datagram of this number of bytes (65507 at most) to the server, which sends it back.
///
/// # Errors
/// When one of the two does not arrive within ten seconds, when its length or bytes differ, or when
/// the answer comes from another address than the destination.
pub fn udp_exchange(from: &Ns, to: &Ns, address: IpAddr, port: u16, size: usize) -> Result<Exchange> {
    udp_exchange_on(from, to, Route::to(address, port), size)
}

/// Runs the exchange of [`udp_exchange`] to a destination that may be translated on the way.
///
/// # Errors
/// Those of [`udp_exchange`].
pub fn udp_exchange_on(from: &Ns, to: &Ns, route: Route, size: usize) -> Result<Exchange> {
    run(from, to, route, size, 1)
}

/// Gives the kernel `count` datagrams of `size` bytes in one call (UDP GSO, as QUIC does). The
/// server sends the first one back. `size * count` is 65507 at most.
///
/// # Errors
/// Those of [`udp_exchange`], for each datagram.
pub fn udp_segments(
    from: &Ns,
    to: &Ns,
    address: IpAddr,
    port: u16,
    size: u16,
    count: usize,
) -> Result<Exchange> {
    run(from, to, Route::to(address, port), size.into(), count)
}

fn run(from: &Ns, to: &Ns, route: Route, size: usize, count: usize) -> Result<Exchange> {
    let server = bind(to, route.listen)?;
    let client = bind(from, SocketAddr::new(unspecified(route.listen), 0))?;
    let server = std::thread::spawn(move || serve(&server, size, count));
    let sent = exchange(&client, route.destination, size, count)
        .with_context(|| format!("UDP from {} to {}", from.name(), route.destination));
    let received = server.join().unwrap_or_else(|_| Err(anyhow!("the thread panicked"))).context("server");
    let (peer, longest_pause) = match (&sent, received) {
        (Err(client), Err(server)) => return Err(anyhow!("{client:#}; {server:#}")),
        (_, received) => received?,
    };
    let (client, duration) = sent?;
    Ok(Exchange {
        peer_seen_by_server: peer,
        client,
        peer_seen_by_client: route.destination,
        bytes: (size * count) as u64,
        duration,
        longest_pause,
    })
}

fn exchange(
    socket: &UdpSocket,
    destination: SocketAddr,
    size: usize,
    count: usize,
) -> Result<(SocketAddr, Duration)> {
    // A connected socket accepts answers from its destination only.
    socket.connect(destination).context("connect")?;
    let local = socket.local_addr()?;
    if count > 1 {
        setsockopt(socket, sockopt::UdpGsoSegment, &i32::try_from(size)?).context("set UDP_SEGMENT")?;
    }
    let start = Instant::now();
    let payload = pattern::piece(0, size * count);
    let sent =
        uninterrupted(|| socket.send(payload)).with_context(|| format!("send {} bytes", payload.len()))?;
    ensure!(sent == size * count, "{sent} bytes of {} were sent", size * count);
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = uninterrupted(|| socket.recv(&mut answer)).context("receive the answer")?;
    ensure!(length == size, "the answer has {length} bytes and should have {size}");
    pattern::compare(0, &answer[..length])?;
    Ok((local, start.elapsed()))
}

fn serve(socket: &UdpSocket, size: usize, count: usize) -> Result<(SocketAddr, Duration)> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut first_peer = None;
    let mut longest_pause = Duration::ZERO;
    for number in 0..count {
        let waiting = Instant::now();
        let (length, peer) = uninterrupted(|| socket.recv_from(&mut buffer))
            .with_context(|| format!("receive datagram {} of {count}", number + 1))?;
        longest_pause = longest_pause.max(waiting.elapsed());
        ensure!(length == size, "a datagram of {length} bytes came in place of one of {size}");
        pattern::compare((number * size) as u64, &buffer[..length])?;
        if number == 0 {
            socket.send_to(&buffer[..length], peer).context("answer")?;
            first_peer = Some(peer);
        }
    }
    Ok((first_peer.context("no datagram was asked for")?, longest_pause))
}

fn bind(ns: &Ns, address: SocketAddr) -> Result<UdpSocket> {
    let socket = ns
        .enter(|| bound(|| UdpSocket::bind(address)))?
        .with_context(|| format!("bind UDP {address} in {}", ns.name()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}
