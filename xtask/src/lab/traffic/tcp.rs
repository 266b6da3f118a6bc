//! TCP between namespaces.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::pattern::{self, PIECE};
use super::{Exchange, PATIENCE, Route, bound, uninterrupted};
use crate::lab::{Ns, is_soak};

/// The largest answer, bytes. The server answers with as many bytes as it got, up to this number,
/// so that both directions carry payload.
const ANSWER: u64 = 64 * 1024;

/// The pause of a stream's sender after each write of [`PIECE`] bytes. Streams show that
/// connections go on. At full rate, the streams of one test would take the processors from all
/// others.
const PAUSE: Duration = Duration::from_millis(10);

/// Connects, and sends this number of bytes from client to server. The server compares them and
/// answers.
///
/// # Errors
/// When a byte is missing or wrong, or when an end waits for more than ten seconds.
pub fn tcp_exchange(from: &Ns, to: &Ns, address: IpAddr, port: u16, bytes: u64) -> Result<Exchange> {
    tcp_exchange_on(from, to, Route::to(address, port), bytes)
}

/// Runs the exchange of [`tcp_exchange`] to a destination that may be translated on the way.
///
/// # Errors
/// Those of [`tcp_exchange`].
pub fn tcp_exchange_on(from: &Ns, to: &Ns, route: Route, bytes: u64) -> Result<Exchange> {
    start(from, to, route, bytes, Duration::ZERO)?.join()
}

/// Sends for this time, as fast as the path allows.
///
/// # Errors
/// Those of [`tcp_exchange`].
pub fn tcp_throughput(from: &Ns, to: &Ns, address: IpAddr, port: u16, length: Duration) -> Result<Exchange> {
    let stream = start(from, to, Route::to(address, port), u64::MAX, Duration::ZERO)?;
    std::thread::sleep(length);
    stream.finish()
}

/// Starts a transfer from `from` to `to` that goes on until [`Stream::finish`]. Its rate is at most
/// 26 MB/s, except in soak.
///
/// # Errors
/// When the connection cannot be made.
pub fn tcp_stream(from: &Ns, to: &Ns, address: IpAddr, port: u16) -> Result<Stream> {
    tcp_stream_on(from, to, Route::to(address, port))
}

/// Starts the transfer of [`tcp_stream`] to a destination that may be translated on the way.
///
/// # Errors
/// When the connection cannot be made.
pub fn tcp_stream_on(from: &Ns, to: &Ns, route: Route) -> Result<Stream> {
    let pause = if is_soak() { Duration::ZERO } else { PAUSE };
    let stream = start(from, to, route, u64::MAX, pause)?;
    stream.wait_for(1)?;
    Ok(stream)
}

/// A running transfer. It ends when this is dropped.
#[derive(Debug)]
pub struct Stream {
    progress: Arc<Progress>,
    ends: Option<(End<Sent>, End<Received>)>,
}

impl Stream {
    /// Returns the payload bytes that have arrived so far.
    pub fn bytes(&self) -> u64 {
        self.progress.received.load(Ordering::Relaxed)
    }

    /// Waits until this number of further bytes has arrived.
    ///
    /// # Errors
    /// When they do not arrive within ten seconds, or when the transfer has failed.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let (start, target) = (Instant::now(), self.bytes() + more);
        while self.bytes() < target {
            let failed = self
                .ends
                .as_ref()
                .is_some_and(|(sender, receiver)| sender.is_finished() || receiver.is_finished());
            if failed || start.elapsed() > PATIENCE {
                let bytes = self.bytes();
                self.progress.stop.store(true, Ordering::Relaxed);
                bail!("the transfer stands at {bytes} bytes of {target} after {:?}", start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Ends the transfer in order (FIN and answer), and returns what both ends saw.
    ///
    /// # Errors
    /// When a byte was missing or wrong, or when an end waited for more than ten seconds.
    pub fn finish(self) -> Result<Exchange> {
        self.progress.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(mut self) -> Result<Exchange> {
        let (sender, receiver) = self.ends.take().context("the transfer has ended")?;
        let (sent, received) = (ended(sender), ended(receiver));
        let (sent, received) = match (sent, received) {
            (Ok(sent), Ok(received)) => (sent, received),
            (Err(sent), Err(received)) => bail!("client: {sent:#}; server: {received:#}"),
            (Err(sent), Ok(_)) => return Err(sent.context("client")),
            (Ok(_), Err(received)) => return Err(received.context("server")),
        };
        if sent.bytes != received.bytes {
            bail!("{} bytes were sent, {} arrived", sent.bytes, received.bytes);
        }
        Ok(Exchange {
            peer_seen_by_server: received.peer,
            client: sent.local,
            peer_seen_by_client: sent.peer,
            bytes: received.bytes,
            duration: sent.duration,
            longest_pause: received.longest_pause,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}

/// The thread of the client or of the server.
type End<T> = JoinHandle<Result<T>>;

#[derive(Debug, Default)]
struct Progress {
    received: AtomicU64,
    stop: AtomicBool,
}

struct Sent {
    local: SocketAddr,
    peer: SocketAddr,
    bytes: u64,
    duration: Duration,
}

struct Received {
    peer: SocketAddr,
    bytes: u64,
    longest_pause: Duration,
}

/// `pause`: the sender's after each write.
fn start(from: &Ns, to: &Ns, route: Route, bytes: u64, pause: Duration) -> Result<Stream> {
    let listener = to
        .enter(|| bound(|| TcpListener::bind(route.listen)))?
        .with_context(|| format!("listen on TCP {} in {}", route.listen, to.name()))?;
    let progress = Arc::new(Progress::default());
    let receiver = to.spawn({
        let progress = Arc::clone(&progress);
        move || receive(&listener, &progress)
    });
    let sender = from.spawn({
        let (progress, name) = (Arc::clone(&progress), from.name().to_owned());
        move || {
            send(route.destination, bytes, pause, &progress)
                .with_context(|| format!("TCP from {name} to {}", route.destination))
        }
    });
    Ok(Stream { progress, ends: Some((sender, receiver)) })
}

fn send(destination: SocketAddr, bytes: u64, pause: Duration, progress: &Progress) -> Result<Sent> {
    let connected = TcpStream::connect_timeout(&destination, PATIENCE);
    // Tell the server to stop listening: this client will not come.
    let mut stream =
        connected.inspect_err(|_| progress.stop.store(true, Ordering::Relaxed)).context("connect")?;
    limit(&stream)?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    let start = Instant::now();
    let mut sent = 0;
    while sent < bytes && !(bytes == u64::MAX && progress.stop.load(Ordering::Relaxed)) {
        let piece = pattern::piece(sent, (bytes - sent).min(PIECE as u64) as usize);
        sent +=
            uninterrupted(|| stream.write(piece)).with_context(|| format!("send after {sent} bytes"))? as u64;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    if answer.len() as u64 != sent.min(ANSWER) {
        bail!("the answer has {} bytes and should have {}", answer.len(), sent.min(ANSWER));
    }
    pattern::compare(0, &answer)?;
    Ok(Sent { local, peer, bytes: sent, duration: start.elapsed() })
}

fn receive(listener: &TcpListener, progress: &Progress) -> Result<Received> {
    let (mut stream, peer) = accept(listener, progress)?;
    limit(&stream)?;
    let mut buffer = vec![0; PIECE];
    let (mut bytes, mut longest_pause) = (0, Duration::ZERO);
    loop {
        let waiting = Instant::now();
        let length = uninterrupted(|| stream.read(&mut buffer))
            .with_context(|| format!("receive after {bytes} bytes"))?;
        if length == 0 {
            break;
        }
        longest_pause = longest_pause.max(waiting.elapsed());
        pattern::compare(bytes, &buffer[..length])?;
        bytes += length as u64;
        progress.received.store(bytes, Ordering::Relaxed);
    }
    stream.write_all(pattern::piece(0, bytes.min(ANSWER) as usize)).context("answer")?;
    Ok(Received { peer, bytes, longest_pause })
}

/// Accepts a connection within [`PATIENCE`]. The standard library has no accept with a deadline.
fn accept(listener: &TcpListener, progress: &Progress) -> Result<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false)?;
                return Ok((stream, peer));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("accept"),
        }
        if progress.stop.load(Ordering::Relaxed) || start.elapsed() > PATIENCE {
            bail!("no connection came within {:?}", start.elapsed());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}

fn ended<T>(thread: End<T>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
}
