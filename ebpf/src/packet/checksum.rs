//! Checksums of headers that the programs write themselves (RFC 1071).

use podwire_common::{addr::Be16, csum};

use super::Ipv4;
use crate::helpers::bpf_csum_diff;

/// Returns the checksum of an IPv4 header without options. Its checksum field must be zero.
#[inline(always)]
pub fn of_ip(header: &Ipv4) -> Be16 {
    let words = (&raw const header.version_length).cast::<u16>();
    let mut sum = 0;
    let mut index = 0;
    while index < 10 {
        // SAFETY: the header's 20 bytes begin there, at an even offset of a structure that is
        // aligned to two. The loop is cheaper than the helper's call.
        sum += u32::from(unsafe { *words.add(index) });
        index += 1;
    }
    finish(sum)
}

/// Returns the checksum for a complete sum.
#[inline(always)]
pub fn finish(sum: u32) -> Be16 {
    Be16 { bytes: (!csum::fold(sum)).to_ne_bytes() }
}

/// Returns how a sum changes when an IPv6 address is replaced.
#[inline(always)]
pub fn difference(old: &[u8; 16], new: &[u8; 16]) -> u32 {
    let (old, new) = (old.as_ptr().cast_mut().cast(), new.as_ptr().cast_mut().cast());
    // SAFETY: the helper only reads, and both pointers cover the length.
    unsafe { bpf_csum_diff(old, 16, new, 16, 0) as u32 }
}

/// Adds `length` bytes at a pointer to a sum. `length` is a multiple of four.
#[inline(always)]
pub fn add(sum: u32, start: *const u8, length: usize) -> u32 {
    // SAFETY: the helper only reads, and the verifier refuses a program if the pointer does not
    // cover the length.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start.cast_mut().cast(), length as u32, sum) as u32 }
}
