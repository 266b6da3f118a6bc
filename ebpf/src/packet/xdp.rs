//! Reading a frame before there is a socket buffer.

use aya_ebpf::programs::XdpContext;

use super::{Headers, Ip};

/// The headers of a VXLAN packet whose outer IP header has neither options nor extension headers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XdpHeaders<I: Ip> {
    /// Ethernet and IP.
    pub outer: Headers<I>,
    /// Source port, destination port, length, checksum.
    pub udp: [u8; 8],
    /// Flags, reserved, network identifier, reserved.
    pub vxlan: [u8; 8],
}

/// Returns the headers, or `None` if the frame ends before they do.
#[inline(always)]
pub fn load<I: Ip>(ctx: &XdpContext) -> Option<XdpHeaders<I>> {
    let start = ctx.data();
    if start + size_of::<XdpHeaders<I>>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bounds were checked; every field is made of bytes, so any alignment will do.
    Some(unsafe { *(start as *const XdpHeaders<I>) })
}
