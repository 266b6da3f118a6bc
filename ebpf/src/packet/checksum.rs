//! Checksums of headers that are written anew (RFC 1071).

use podwire_common::{addr::Be16, csum};

use super::Headers;
use crate::helpers::bpf_csum_diff;

/// The checksum of an IPv4 header without options whose checksum field is zero.
#[inline(always)]
pub fn of_ip(headers: &Headers) -> Be16 {
    finish(add(0, &raw const headers.version_length, 20))
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
