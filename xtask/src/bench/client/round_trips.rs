//! Requests and responses, one at a time.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::{CORE, PATIENCE, busy_time, joined, pinned, udp_towards};
use crate::bench::site::Site;
use crate::bench::statistics::median;

/// Payload of a request and of a response, bytes.
const MESSAGE: usize = 64;
pub(crate) const PORT: u16 = 9000;
/// The datagram that ends the server. It is shorter than a request.
const END: &[u8] = b"end";

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// A connected client and server on one core. So they wait only for the path.
pub(crate) struct RoundTrips<'a> {
    site: &'a Site,
    transport: Transport,
    client: Arc<OwnedFd>,
    server: Option<JoinHandle<Result<()>>>,
}

/// The results of a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// Half of a round trip, microseconds: the median of all round trips.
    pub(crate) one_way: f64,
    /// Busy time of the core per round trip, microseconds.
    pub(crate) cpu: f64,
}

impl<'a> RoundTrips<'a> {
    /// Connects client and server.
    pub(crate) fn start(site: &'a Site, transport: Transport) -> Result<Self> {
        let (peer, listen) = (SocketAddr::new(site.address, PORT), SocketAddr::new(site.listen, PORT));
        let (server, client) = match transport {
            Transport::Tcp => {
                let listener = site.server.enter(|| TcpListener::bind(listen))?.context("listen")?;
                let server = pinned(&site.server, CORE, move || {
                    let (stream, _) = listener.accept()?;
                    stream.set_nodelay(true)?;
                    answer(&stream.into())
                });
                let client = site.client.enter(|| TcpStream::connect_timeout(&peer, PATIENCE))?;
                let client = client.context("connect")?;
                client.set_nodelay(true)?;
                (server, OwnedFd::from(client))
            }
            Transport::Udp => {
                let socket = site.server.enter(|| UdpSocket::bind(listen))?.context("bind")?;
                let server = pinned(&site.server, CORE, move || {
                    // The first request has the client's address.
                    let (_, client) = socket.peek_from(&mut [0; MESSAGE])?;
                    socket.connect(client)?;
                    answer(&socket.into())
                });
                (server, OwnedFd::from(udp_towards(&site.client, peer)?))
            }
        };
        set_socket_timeout(&client, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { site, transport, client: Arc::new(client), server: Some(server) })
    }

    /// Returns the site of client and server.
    pub(crate) fn site(&self) -> &'a Site {
        self.site
    }

    /// Sends requests for one turn.
    pub(crate) fn measure(&self, turn: Duration) -> Result<Latency> {
        let client = Arc::clone(&self.client);
        joined(pinned(&self.site.client, CORE, move || {
            let mut samples = Vec::with_capacity(1 << 17);
            let busy = busy_time(CORE)?;
            let start = Instant::now();
            let mut before = start;
            while before.duration_since(start) < turn {
                ask(&client)?;
                let now = Instant::now();
                samples.push(now.duration_since(before).as_nanos() as f64 / 1000.0);
                before = now;
            }
            let busy = busy_time(CORE)? - busy;
            let cpu = busy.as_secs_f64() * 1e6 / samples.len() as f64;
            Ok(Latency { one_way: median(&samples) / 2.0, cpu })
        }))
    }
}

impl Drop for RoundTrips<'_> {
    fn drop(&mut self) {
        let ended = match self.transport {
            Transport::Tcp => shutdown(&*self.client, Shutdown::Both),
            Transport::Udp => send(&*self.client, END, SendFlags::empty()).map(|_| ()),
        };
        // If the end signal could not be sent, the server may still wait. Leave it to the end of
        // the process.
        if let (Ok(()), Some(server)) = (ended, self.server.take()) {
            drop(joined(server));
        }
    }
}

fn ask(client: &OwnedFd) -> Result<()> {
    let mut message = [0; MESSAGE];
    send(client, &message, SendFlags::empty()).context("send a request")?;
    let mut received = 0;
    while received < MESSAGE {
        let length = retried(|| recv(client, &mut message[received..], RecvFlags::empty()))
            .context("wait for a response")?;
        ensure!(length > 0, "the server has ended");
        received += length;
    }
    Ok(())
}

fn answer(server: &OwnedFd) -> Result<()> {
    let mut message = [0; MESSAGE];
    loop {
        let length = retried(|| recv(server, &mut message[..], RecvFlags::empty()))?;
        if length == 0 || message[..length] == *END {
            return Ok(());
        }
        send(server, &message[..length], SendFlags::empty())?;
    }
}

/// Repeats a call that a signal has interrupted.
fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<(T, usize)>) -> Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            outcome => return Ok(outcome?.1),
        }
    }
}
