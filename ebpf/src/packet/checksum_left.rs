//! The checksum that a packet's sender left to the kernel. No field of a program's context shows
//! it, so the program reads it from the kernel's own socket buffer. The address of the context is
//! the address of the buffer. With CAP_PERFMON, the verifier lets a program pass it to
//! `bpf_probe_read_kernel`.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{SKB_WINDOW, SkbLayout},
    checksum_left::ChecksumLeft,
    reason::Drop,
};

use crate::helpers::bpf_probe_read_kernel;

/// `linux/skbuff.h`.
const CHECKSUM_PARTIAL: u8 = 3;

/// A part of `struct sk_buff`, with the same alignment.
#[repr(C, align(8))]
struct Window([u8; SKB_WINDOW]);

/// Returns the checksum that is left to the kernel, if any.
///
/// # Errors
/// [`Drop::ChecksumNotOwn`] when the kernel refuses the read, or the sum begins before the frame.
#[inline(always)]
pub fn checksum_left(ctx: &TcContext, layout: SkbLayout) -> Result<Option<ChecksumLeft>, Drop> {
    let mut window = Window([0; SKB_WINDOW]);
    let from = ctx.skb.skb.cast::<u8>().wrapping_add(layout.window.into());
    // SAFETY: the helper writes as many bytes as the window has, and reads kernel memory that it
    // checks itself.
    let code = unsafe { bpf_probe_read_kernel((&raw mut window).cast(), SKB_WINDOW as u32, from.cast()) };
    if code != 0 {
        return Err(Drop::ChecksumNotOwn);
    }
    if window.bits(layout.ip_summed) & 3 != CHECKSUM_PARTIAL {
        return Ok(None);
    }
    let (start, frame) = (window.u16_at(layout.csum_start), window.u16_at(layout.mac_header));
    Ok(Some(ChecksumLeft {
        start: start.checked_sub(frame).ok_or(Drop::ChecksumNotOwn)?,
        offset: window.u16_at(layout.csum_offset),
        is_encapsulated: window.bits(layout.encapsulation) & 1 != 0,
    }))
}

impl Window {
    /// Returns a byte, shifted so that `bit` becomes its lowest bit.
    #[inline(always)]
    fn bits(&self, bit: u16) -> u8 {
        // SAFETY: the loader has checked that the byte is within the window. The verifier knows the
        // number and refuses one beyond the window.
        unsafe { *self.0.as_ptr().add(usize::from(bit / 8)) >> (bit % 8) }
    }

    #[inline(always)]
    fn u16_at(&self, offset: u16) -> u16 {
        // SAFETY: within the window, see `bits`; the kernel aligns the field.
        unsafe { *self.0.as_ptr().add(offset.into()).cast() }
    }
}
