//! A pod's limit as the kernel's token bucket filter (tc-tbf(8)). It is the root queueing
//! discipline of the sending end of the veth pair. Packets to the pod wait on the host side,
//! packets from the pod on the pod's side.

use std::num::NonZeroU64;

use netlink_packet_core::{DefaultNla, Nla as _, NlasIterator};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use podwire_common::token_bucket::TokenBucket;

use crate::protocol::Limit;

/// The kernel's name of the filter.
const KIND: &str = "tbf";
/// Attributes of `linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// With a link layer named, the kernel requires no table of rates (Linux 3.8).
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// `struct tc_tbf_qopt`: two times `struct tc_ratespec`, which ends with its rate, then limit,
/// buffer and MTU.
const PARAMETERS_LENGTH: usize = 36;
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;

/// Returns the filter for a limit on a link. `mtu` is the link's MTU in bytes.
pub fn of_limit(limit: Limit, mtu: u32) -> TokenBucket {
    TokenBucket::new(limit.rate.get(), limit.burst.map(NonZeroU64::get), mtu)
}

/// Returns a request (`RTM_NEWQDISC`) that makes the filter the root of a device. With
/// `NLM_F_CREATE` and `NLM_F_REPLACE` the kernel replaces any other queue there, and changes a
/// token bucket filter in place.
pub fn message(bucket: &TokenBucket, device: u32) -> TcMessage {
    let mut parameters = [0; PARAMETERS_LENGTH];
    parameters[1] = TC_LINKLAYER_ETHERNET;
    parameters[RATE_AT..][..4].copy_from_slice(&rate_of_32_bits(bucket).to_ne_bytes());
    parameters[LIMIT_AT..][..4].copy_from_slice(&bucket.queue.to_ne_bytes());
    let mut options = vec![
        DefaultNla::new(TCA_TBF_PARMS, parameters.to_vec()),
        DefaultNla::new(TCA_TBF_BURST, bucket.burst.to_ne_bytes().to_vec()),
    ];
    if rate_of_32_bits(bucket) == u32::MAX {
        options.push(DefaultNla::new(TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()));
    }
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = TcHandle::ROOT;
    message.attributes = vec![
        TcAttribute::Kind(KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()),
    ];
    message
}

/// Returns whether an answer of the kernel (`RTM_NEWQDISC`) describes this filter at the root of a
/// device. The burst is not compared: the kernel reports it as a time in units of its own.
pub fn is_told_by(bucket: &TokenBucket, message: &TcMessage, device: u32) -> bool {
    message.header.index == device as i32
        && message.header.parent == TcHandle::ROOT
        && message.attributes.contains(&TcAttribute::Kind(KIND.to_owned()))
        && message.attributes.iter().any(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().any(|option| is_described_by(bucket, option)),
            _ => false,
        })
}

/// Compares the options. The library does not know this kind of queue, so it returns all options as
/// one.
fn is_described_by(bucket: &TokenBucket, option: &TcOption) -> bool {
    let TcOption::Other(options) = option else { return false };
    let mut bytes = vec![0; options.value_len()];
    options.emit_value(&mut bytes);
    let (mut rate, mut rate_of_64_bits, mut queue) = (None, None, None);
    for attribute in NlasIterator::new(&bytes).map_while(Result::ok) {
        match attribute.kind() {
            TCA_TBF_PARMS => {
                rate = number(attribute.value(), RATE_AT);
                queue = number(attribute.value(), LIMIT_AT);
            }
            TCA_TBF_RATE64 => rate_of_64_bits = attribute.value().try_into().ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    rate_of_64_bits.or(rate.map(u64::from)) == Some(bucket.rate) && queue == Some(bucket.queue)
}

/// Returns the rate for the 32-bit field. Its largest value stands for all rates that need more
/// bits.
fn rate_of_32_bits(bucket: &TokenBucket) -> u32 {
    u32::try_from(bucket.rate).unwrap_or(u32::MAX)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable as _, Parseable as _};

    use super::*;

    /// Returns the message as the kernel reports it: with a handle, and with more attributes.
    fn told(bucket: &TokenBucket) -> TcMessage {
        let mut message = super::message(bucket, 7);
        message.header.handle = TcHandle { major: 0x8001, minor: 0 };
        message.attributes.push(TcAttribute::HwOffload(0));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        TcMessage::parse(&bytes[..]).unwrap()
    }

    #[test]
    fn the_kernel_is_understood_and_anything_else_is_something_else() {
        for rate in [10_000_000, 100_000_000_000] {
            let bucket = TokenBucket::new(rate, None, 1450);
            assert!(is_told_by(&bucket, &told(&bucket), 7));
            assert!(!is_told_by(&bucket, &told(&bucket), 8), "another device");
            assert!(!is_told_by(&TokenBucket { rate: bucket.rate - 1, ..bucket }, &told(&bucket), 7));
            assert!(!is_told_by(&TokenBucket { queue: bucket.queue - 1, ..bucket }, &told(&bucket), 7));
            let mut other = told(&bucket);
            other.header.parent = TcHandle::UNSPEC;
            assert!(!is_told_by(&bucket, &other, 7), "not at the root");
            let mut other = told(&bucket);
            other.attributes[0] = TcAttribute::Kind("fq".to_owned());
            assert!(!is_told_by(&bucket, &other, 7), "another kind");
        }
    }
}
