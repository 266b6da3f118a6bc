//! Reading a frame before there is a socket buffer.

use aya_ebpf::programs::XdpContext;

use super::Headers;

/// The headers of a VXLAN packet whose outer IPv4 header has no options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct XdpHeaders {
    /// Ethernet and IPv4.
    pub outer: Headers,
    /// Source port, destination port, length, checksum.
    pub udp: [u8; 8],
    /// Flags, reserved, network identifier, reserved.
    pub vxlan: [u8; 8],
}

/// Returns the headers, or `None` if the frame ends before they do.
#[inline(always)]
pub fn load(ctx: &XdpContext) -> Option<XdpHeaders> {
    let start = ctx.data();
    if start + size_of::<XdpHeaders>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bounds were checked; every field is made of bytes, so any alignment will do.
    Some(unsafe { *(start as *const XdpHeaders) })
}
