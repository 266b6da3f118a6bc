//! What a rule of the host may change of a packet besides its addresses and ports.

use aya_ebpf::programs::TcContext;
use podwire_common::flow::protocol;

use super::{Parsed, checksum};
use crate::helpers::bpf_skb_load_bytes;

/// Of a TCP header, options included (RFC 9293).
const LEAST: u32 = 20;
const MOST: u32 = 60;
const WORDS: usize = MOST as usize / 4;

/// A sum of a packet's traffic class, length and, with this time to live, of TCP the whole header: clamping a segment size changes it, and so
/// does every other rule that rewrites a first packet.
// A function of its own: the header would take its place on the stack of every caller.
#[inline(never)]
pub fn imprint(ctx: &TcContext, packet: &Parsed, ttl: u8) -> u32 {
    let headers = &packet.headers;
    let sum = u32::from(headers.traffic_class) << 24
        | u32::from(ttl) << 16
        | u32::from(headers.total_length.be16());
    // As the verifier is shown it; whole words, fifteen at most.
    let length = packet.repeated_headers.wrapping_sub(headers.header_length()) & MOST;
    if headers.protocol != protocol::TCP || length < LEAST {
        return sum;
    }
    let mut header = [0u32; WORDS];
    let at = headers.transport_offset(packet.base);
    // SAFETY: the context is valid, and the value is as large as the length may be.
    let code = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at, header.as_mut_ptr().cast(), length) };
    if code != 0 {
        return sum;
    }
    checksum::add(sum, header.as_ptr().cast(), size_of_val(&header))
}
