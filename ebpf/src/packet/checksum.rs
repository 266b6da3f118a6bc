//! Checksums of headers that are written anew (RFC 1071).

use podwire_common::{addr::Be16, csum};

use super::Headers;
use crate::helpers::bpf_csum_diff;

/// The checksum of an IPv4 header without options whose checksum field is zero.
#[inline(always)]
pub fn of_ip(headers: &Headers) -> Be16 {
    let words = (&raw const headers.version_length).cast::<u16>();
    let mut sum = 0;
    let mut index = 0;
    while index < 10 {
        // SAFETY: 20 bytes of the headers begin there, at an even offset of what is aligned to two. Cheaper than the helper's call.
        sum += u32::from(unsafe { *words.add(index) });
        index += 1;
    }
    finish(sum)
}

/// The checksum that ends a sum.
#[inline(always)]
pub fn finish(sum: u32) -> Be16 {
    Be16 { bytes: (!csum::fold(sum)).to_ne_bytes() }
}

/// Adds what starts at a pointer to a sum: `length` bytes, a multiple of four.
#[inline(always)]
pub fn add(sum: u32, start: *const u8, length: usize) -> u32 {
    // SAFETY: the helper only reads, and the verifier refuses a program whose pointer does not cover the length.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start.cast_mut().cast(), length as u32, sum) as u32 }
}
