//! Raw Ethernet frames: frames that a pod or a stranger may try to send, and frames that a link
//! carried.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender, NetworkInterface};

use crate::lab::Ns;

/// The time for which a capture goes on after its end is requested. Frames sent before arrive in
/// this time.
const GRACE: Duration = Duration::from_millis(100);
/// The interval at which a capture without frames checks whether it should end.
const POLL: Duration = Duration::from_millis(20);
/// The largest frame that a capture reads: a GSO segment with its headers.
const LARGEST: usize = 1 << 17;

/// Sends one frame unchanged out of a link.
///
/// # Errors
/// When there is no such link, or when the kernel refuses the frame.
pub fn send(ns: &Ns, link: &str, frame: &[u8]) -> Result<()> {
    send_all(ns, link, &[frame])
}

/// Sends frames unchanged, in order.
///
/// # Errors
/// When there is no such link, or when the kernel refuses a frame.
pub fn send_all(ns: &Ns, link: &str, frames: &[&[u8]]) -> Result<()> {
    let (mut sender, _) = open(ns, link)?;
    for frame in frames {
        let sent = sender.send_to(frame, None).context("the socket has no room for a frame")?;
        sent.with_context(|| format!("send a frame of {} bytes from {link} in {}", frame.len(), ns.name()))?;
    }
    Ok(())
}

/// A capture of all frames that a link sends and receives, until [`Capture::finish`]. A large
/// segment is one frame.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Starts a capture. It has every frame that is sent after this function has returned.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn start(ns: &Ns, link: &str) -> Result<Self> {
        let (_, mut receiver) = open(ns, link)?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut frames = Vec::new();
                let mut end = None;
                while end.is_none_or(|end| Instant::now() < end) {
                    match receiver.next() {
                        Ok(frame) => frames.push(frame.to_vec()),
                        Err(error) if error.kind() == ErrorKind::TimedOut => {}
                        Err(error) => return Err(error).context("capture"),
                    }
                    if end.is_none() && stop.load(Ordering::Relaxed) {
                        end = Some(Instant::now() + GRACE);
                    }
                }
                Ok(frames)
            }
        });
        Ok(Self { stop, thread })
    }

    /// Ends the capture a moment later, and returns the frames in order.
    ///
    /// # Errors
    /// When the socket failed.
    pub fn finish(self) -> Result<Vec<Vec<u8>>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| Err(anyhow!("the capture panicked")))
    }
}

fn open(ns: &Ns, link: &str) -> Result<(Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>)> {
    let interface = NetworkInterface {
        name: link.to_owned(),
        description: String::new(),
        index: ns.ifindex(link)?,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    let config = Config { read_buffer_size: LARGEST, read_timeout: Some(POLL), ..Config::default() };
    let channel = ns
        .enter(|| pnet_datalink::channel(&interface, config))?
        .with_context(|| format!("open a packet socket on {link} in {}", ns.name()))?;
    match channel {
        Channel::Ethernet(sender, receiver) => Ok((sender, receiver)),
        _ => bail!("the packet socket on {link} is not of Ethernet"),
    }
}
