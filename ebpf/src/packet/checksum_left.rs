//! The checksum that a packet's sender left to the kernel. No field of a program's context shows it,
//! so the program reads it from the kernel's own socket buffer. The context's address is the
//! buffer's; the verifier lets a program of CAP_PERFMON give it to `bpf_probe_read_kernel`.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{SKB_WINDOW, SkbLayout},
    checksum_left::ChecksumLeft,
    reason::Drop,
};

use crate::helpers::bpf_probe_read_kernel;

/// `linux/skbuff.h`.
const CHECKSUM_PARTIAL: u8 = 3;

/// A part of `struct sk_buff`, aligned as there.
#[repr(C, align(8))]
struct Window([u8; SKB_WINDOW]);

/// The checksum that is left, if any.
///
/// # Errors
/// [`Drop::ChecksumNotOwn`] when the kernel does not let it be read, or the sum begins before the
/// frame.
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
    /// A byte, shifted so that the bit is its lowest.
    #[inline(always)]
    fn bits(&self, bit: u16) -> u8 {
        // SAFETY: the loader has seen that it is within; the verifier, which knows the number,
        // refuses what is not.
        unsafe { *self.0.as_ptr().add(usize::from(bit / 8)) >> (bit % 8) }
    }

    #[inline(always)]
    fn u16_at(&self, offset: u16) -> u16 {
        // SAFETY: as above; the kernel aligns it.
        unsafe { *self.0.as_ptr().add(offset.into()).cast() }
    }
}
