//! Frames that leave work to the kernel. A packet socket with a virtio header says which work
//! (`PACKET_VNET_HDR`).

#![expect(unsafe_code, reason = "two system calls that take a pointer and a length")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};
use xtask::lab::Ns;

const NEEDS_CHECKSUM: u8 = 1;

/// The work that a frame leaves to the kernel (`struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// The offset in the frame where a checksum begins, and the offset from there where it is
    /// written.
    pub checksum: Option<(u16, u16)>,
    /// `VIRTIO_NET_HDR_GSO_*`, and the payload of one segment.
    pub segments: Option<(u8, u16)>,
    /// The length of all headers, as the sender states it.
    pub header_length: u16,
}

impl Offload {
    /// Returns a frame's request for a checksum.
    pub fn checksum(start: u16, offset: u16) -> Self {
        Self { checksum: Some((start, offset)), ..Self::default() }
    }

    fn header(&self) -> [u8; 10] {
        let (start, offset) = self.checksum.unwrap_or_default();
        let (kind, size) = self.segments.unwrap_or_default();
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (index, number) in [self.header_length, size, start, offset].into_iter().enumerate() {
            header[2 + 2 * index..][..2].copy_from_slice(&number.to_ne_bytes());
        }
        header
    }
}

/// A packet socket on a link.
pub struct Sender {
    socket: OwnedFd,
}

impl Sender {
    pub fn open(ns: &Ns, link: &str) -> Self {
        Self::open_for(ns, link, libc::ETH_P_IP)
    }

    /// Opens a socket that marks its frames with a protocol (`ETH_P_*`), whatever they contain.
    pub fn open_for(ns: &Ns, link: &str, protocol: i32) -> Self {
        let ifindex = ns.ifindex(link).unwrap();
        let socket = ns.enter(|| socket(AddressFamily::PACKET, SocketType::RAW, None)).unwrap().unwrap();
        let on: libc::c_int = 1;
        let link = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (protocol as u16).to_be(),
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the descriptor is open, and each pointer points to a live local with the length
        // beside it.
        let outcomes = unsafe {
            [
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_PACKET,
                    libc::PACKET_VNET_HDR,
                    (&raw const on).cast(),
                    size_of_val(&on) as u32,
                ),
                libc::bind(socket.as_raw_fd(), (&raw const link).cast(), size_of_val(&link) as u32),
            ]
        };
        assert_eq!(outcomes, [0, 0], "{}", io::Error::last_os_error());
        Self { socket }
    }

    /// Returns whether the kernel takes the frame. The socket refuses an impossible frame (EINVAL).
    /// The link drops segments that do not fit their headers, and the kernel reports that as
    /// ENOMEM.
    pub fn send(&self, offload: &Offload, frame: &[u8]) -> bool {
        let message = [&offload.header(), frame].concat();
        match rustix::io::write(&self.socket, &message) {
            Ok(_) => true,
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOMEM) => false,
            Err(error) => panic!("send with {offload:?}: {error}"),
        }
    }
}
