//! Both ends of a service's flows: backends that send their name and the client's address, and
//! clients that read them.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use xtask::lab::Ns;

use crate::sockets::{UdpSocket, listen, udp, unspecified};

/// The longest time that a client waits.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a server checks whether it should end.
const POLL: Duration = Duration::from_millis(50);
/// More than any path's MTU, and less than a socket's buffer: both ends may write before either
/// reads.
const PIECE: usize = 32 * 1024;

/// Servers that run until this is dropped.
pub struct Backends {
    /// The address on which they listen.
    address: IpAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backends {
    /// Returns a place for servers that listen on an address.
    pub fn at(address: IpAddr) -> Self {
        Self { address, stop: Arc::default(), threads: Vec::new() }
    }

    /// Sends `name peer` to every client, then sends back what it receives.
    pub fn tcp(&mut self, ns: &Ns, name: &str, port: u16) {
        let listener = listen(ns, (self.address, port));
        // The receive timeout ends `accept` as well (socket(7)).
        set_socket_timeout(&listener, Timeout::Recv, Some(POLL)).unwrap();
        let (name, stop) = (name.to_owned(), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            std::thread::scope(|connections| {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((stream, peer)) = listener.accept() {
                        let (name, stop) = (&name, &stop);
                        // When a client goes away, that is no error of the server.
                        connections.spawn(move || drop(echo(stream, &format!("{name} {peer}\n"), stop)));
                    }
                }
            });
        }));
    }

    /// Sends every datagram back, with `name peer` in place of its beginning.
    pub fn udp(&mut self, ns: &Ns, name: &str, port: u16) {
        let socket = udp(ns, (self.address, port));
        socket.set_read_timeout(Some(POLL)).unwrap();
        let (name, stop) = (name.to_owned(), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            let mut datagram = vec![0; usize::from(u16::MAX)];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut datagram) {
                    let greeting = format!("{name} {peer}\n");
                    datagram[..greeting.len()].copy_from_slice(greeting.as_bytes());
                    drop(socket.send_to(&datagram[..length], peer));
                }
            }
        }));
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn echo(mut stream: TcpStream, greeting: &str, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(POLL))?;
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = vec![0; PIECE];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The backend that answered, and what both ends saw.
#[derive(Clone, Debug)]
pub struct Answer {
    pub backend: String,
    /// The client's address as the backend saw it.
    pub seen: SocketAddr,
    /// The client's own address.
    pub client: SocketAddr,
}

impl Answer {
    fn new(greeting: &str, client: SocketAddr) -> Result<Self> {
        let (backend, seen) =
            greeting.split_once(' ').with_context(|| format!("an answer of {greeting:?}"))?;
        Ok(Self { backend: backend.to_owned(), seen: seen.parse()?, client })
    }
}

/// An open connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
    /// The address to which it was made.
    pub server: SocketAddr,
    pub answer: Answer,
}

impl Connection {
    /// Connects, and reads the backend's greeting.
    ///
    /// # Errors
    /// When it is refused (with [`std::io::Error`] as the cause) or takes more than `PATIENCE`.
    pub fn open(from: &Ns, destination: SocketAddr) -> Result<Self> {
        let what = || format!("TCP from {} to {destination}", from.name());
        let stream = from.enter(|| TcpStream::connect_timeout(&destination, PATIENCE))?.with_context(what)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let client = stream.local_addr()?;
        let mut reader = BufReader::new(stream);
        let mut greeting = String::new();
        reader.read_line(&mut greeting).with_context(what)?;
        let answer = Answer::new(greeting.trim_end(), client).with_context(what)?;
        Ok(Self { reader, server: destination, answer })
    }

    /// Sends this many bytes and compares what comes back.
    ///
    /// # Errors
    /// When a byte is missing or wrong, or takes more than `PATIENCE`.
    pub fn echo(&mut self, bytes: usize) -> Result<()> {
        let payload = payload(PIECE);
        let mut received = vec![0; PIECE];
        for sent in (0..bytes).step_by(PIECE) {
            let length = PIECE.min(bytes - sent);
            let mut exchange = || {
                self.reader.get_mut().write_all(&payload[..length])?;
                self.reader.read_exact(&mut received[..length])
            };
            exchange().with_context(|| format!("after {sent} bytes of {:?}", self.answer))?;
            ensure!(received[..length] == payload[..length], "other bytes came back from {:?}", self.answer);
        }
        Ok(())
    }
}

/// Sends one datagram from a new socket, and accepts an answer only from the address that was
/// asked.
///
/// # Errors
/// When no answer comes within `PATIENCE`, or one with another length or payload.
pub fn ask_by_udp(from: &Ns, destination: SocketAddr, size: usize) -> Result<Answer> {
    let what = || format!("UDP from {} to {destination} ({size} bytes)", from.name());
    let socket = from.enter(|| UdpSocket::bind((unspecified(destination.ip()), 0)))??;
    socket.connect(destination).with_context(what)?;
    let payload = payload(size);
    let mut answer = vec![0; usize::from(u16::MAX)];
    let mut ask = || socket.send(&payload).and_then(|_| socket.recv(&mut answer));
    let outcome = ask();
    // In IPv6 only the sender fragments. If a link on the way takes less than the sender's, the first
    // datagram is lost, and the sender is told.
    let is_told = |error: &Error| Errno::from_io_error(error) == Some(Errno::MSGSIZE);
    let told = destination.is_ipv6() && outcome.as_ref().is_err_and(is_told);
    let length = if told { ask() } else { outcome }.with_context(what)?;
    read_answer(&answer[..length], &payload, socket.local_addr()?).with_context(what)
}

/// Does the same with a socket that is not connected, and fails if another address answers.
///
/// # Errors
/// As [`ask_by_udp`].
pub fn ask_by_unconnected_udp(from: &Ns, destination: SocketAddr, size: usize) -> Result<Answer> {
    let what = || format!("UDP from {} to {destination} ({size} bytes)", from.name());
    let socket = udp(from, (unspecified(destination.ip()), 0));
    let payload = payload(size);
    let mut answer = vec![0; usize::from(u16::MAX)];
    let (length, peer) = socket
        .send_to(&payload, destination)
        .and_then(|_| socket.recv_from(&mut answer))
        .with_context(what)?;
    ensure!(peer == destination, "{}: {peer} answers", what());
    // Such a socket has a port, and no address.
    read_answer(&answer[..length], &payload, socket.local_addr()?).with_context(what)
}

fn read_answer(answer: &[u8], asked: &[u8], client: SocketAddr) -> Result<Answer> {
    ensure!(answer.len() == asked.len(), "the answer has {} bytes", answer.len());
    let end = answer.iter().position(|byte| *byte == b'\n').context("an answer without a greeting")?;
    ensure!(answer[end + 1..] == asked[end + 1..], "other bytes came back");
    Answer::new(str::from_utf8(&answer[..end])?, client)
}

/// Succeeds when a connection is refused. It must be neither made nor left without an answer.
///
/// # Errors
/// When the connection is made, or stays without an answer.
pub fn expect_refusal(from: &Ns, destination: SocketAddr) -> Result<()> {
    match from.enter(|| TcpStream::connect_timeout(&destination, PATIENCE))? {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        outcome => bail!("TCP from {} to {destination}: {outcome:?}", from.name()),
    }
}

/// Returns bytes with a period that is no power of two, unlike sizes of buffers and segments.
fn payload(size: usize) -> Vec<u8> {
    (0..251).cycle().take(size).collect()
}
