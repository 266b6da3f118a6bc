//! A link without link header between two namespaces: a tun device on each side, and a wire that
//! carries packets between the devices.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::lab::Ns;

/// The interval at which a wire without packets checks whether it should end.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// The largest packet: a segment of any size is one packet.
const LARGEST: usize = 1 << 16;
/// From linux/if_tun.h: a device of IP packets without a header before them.
const IFF_TUN: u16 = 1;
const IFF_NO_PI: u16 = 0x1000;

/// The wire between the two devices. The devices end with it.
#[derive(Debug)]
pub struct TunCable {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl TunCable {
    /// Makes a tun device with this name in both namespaces, and sets both up. They have no
    /// addresses.
    ///
    /// # Errors
    /// When the kernel has no tun devices (`/dev/net/tun`), or when the name is taken.
    pub fn connect(one: &Ns, other: &Ns, name: &str) -> Result<Self> {
        let (here, there) = (open(one, name)?, open(other, name)?);
        one.ip(&format!("link set dev {name} up\n"))?;
        other.ip(&format!("link set dev {name} up\n"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let ways = [(here.try_clone()?, there.try_clone()?), (there, here)];
        let threads = ways.map(|(from, to)| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || carry(from, to, &stop))
        });
        Ok(Self { stop, threads: threads.into() })
    }
}

impl Drop for TunCable {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(ns: &Ns, name: &str) -> Result<File> {
    ns.enter(|| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
        attach(&file, &request).with_context(|| format!("make {name} in {}", ns.name()))?;
        Ok(file)
    })?
}

/// Calls `TUNSETIFF` with a `struct ifreq`.
#[expect(unsafe_code, reason = "the ioctl takes a pointer")]
fn attach(file: &File, request: &[u8; 40]) -> nix::Result<()> {
    nix::ioctl_write_ptr_bad!(set_interface, nix::request_code_write!(b'T', 202, size_of::<i32>()), [u8; 40]);
    // SAFETY: the descriptor is a tun device's, and the kernel reads a `struct ifreq` of 40 bytes.
    unsafe { set_interface(file.as_raw_fd(), request) }.map(drop)
}

/// Carries packets until `stop` is set or a device is gone. As on a wire, packets are lost if the
/// receiving side has no room for them.
fn carry(mut from: File, mut to: File, stop: &AtomicBool) {
    let mut packet = vec![0; LARGEST];
    while !stop.load(Ordering::Relaxed) {
        match from.read(&mut packet) {
            Ok(length) => {
                let _ = to.write(&packet[..length]);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut waiting = [PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN)];
                let _ = poll(&mut waiting, Some(&POLL));
            }
            Err(_) => return,
        }
    }
}
