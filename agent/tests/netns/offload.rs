//! Frames that leave work to the kernel: a packet socket with a virtio header says which
//! (`PACKET_VNET_HDR`).

#![expect(unsafe_code, reason = "two system calls that take a pointer and a length")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};
use xtask::lab::Ns;

const NEEDS_CHECKSUM: u8 = 1;

/// What a frame leaves to the kernel (`struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Offload {
    /// Where a checksum begins in the frame, and where it goes from there.
    pub checksum: Option<(u16, u16)>,
    /// `VIRTIO_NET_HDR_GSO_*`, and the payload of a segment.
    pub segments: Option<(u8, u16)>,
    /// What the sender calls the length of all headers.
    pub header_length: u16,
}

impl Offload {
    /// A checksum that is left.
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

    /// A socket that calls its frames those of a protocol (`ETH_P_*`), whatever they carry.
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
        // SAFETY: the descriptor is open, and each pointer is that of a live local of the length
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

    /// Whether the kernel takes the frame. The socket refuses what cannot be; segments that do not
    /// fit their headers end at the link, for which the kernel has no other error than that memory
    /// is missing.
    pub fn send(&self, offload: &Offload, frame: &[u8]) -> bool {
        let message = [&offload.header(), frame].concat();
        match rustix::io::write(&self.socket, &message) {
            Ok(_) => true,
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOMEM) => false,
            Err(error) => panic!("send with {offload:?}: {error}"),
        }
    }
}
