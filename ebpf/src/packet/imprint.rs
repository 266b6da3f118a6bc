//! The imprint of a packet: all that a rule of the host may change besides addresses and ports.

use aya_ebpf::programs::TcContext;
use podwire_common::flow::protocol;

use super::{Ip, Parsed, checksum};
use crate::helpers::bpf_skb_load_bytes;

/// Least and most bytes of a TCP header, options included (RFC 9293).
const LEAST: u32 = 20;
const MOST: u32 = 60;
const WORDS: usize = MOST as usize / 4;

/// Returns a sum over a packet's traffic class, its length, the TTL `ttl`, and for TCP the whole
/// header. A rule that clamps the segment size changes the sum, and so does every other rule that
/// rewrites a first packet.
// Not inlined: the header would take stack in every caller.
#[inline(never)]
pub fn imprint<I: Ip>(ctx: &TcContext, packet: &Parsed<I>, ttl: u8) -> u32 {
    let ip = &packet.headers.ip;
    let sum =
        u32::from(ip.traffic_class()) << 24 | u32::from(ttl) << 16 | u32::from(ip.length_field().be16());
    // The mask shows the verifier the bound: whole words, 15 at most.
    let length = packet.repeated_headers.wrapping_sub(packet.header_length()) & MOST;
    if packet.protocol() != protocol::TCP || length < LEAST {
        return sum;
    }
    let mut header = [0u32; WORDS];
    let at = packet.transport_offset();
    // SAFETY: the context is valid, and `header` has room for the largest length.
    let code = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at, header.as_mut_ptr().cast(), length) };
    if code != 0 {
        return sum;
    }
    checksum::add(sum, header.as_ptr().cast(), size_of_val(&header))
}
