//! A pod's limit as the kernel's token bucket filter (tc-tbf(8)): the root queueing discipline of the end of the veth pair that sends towards
//! it. What a pod receives waits on the host side, what it sends on its own side.

use netlink_packet_core::{DefaultNla, Nla as _, NlasIterator};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use crate::protocol::Limit;

/// Its name to the kernel.
const KIND: &str = "tbf";
/// Attributes of `linux/pkt_sched.h`.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// With a link layer named, the kernel asks for no table of rates (Linux 3.8).
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// `struct tc_tbf_qopt`: two of `struct tc_ratespec`, which has its rate last, then limit, buffer and MTU.
const PARAMETERS_LENGTH: usize = 36;
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;

/// What the link adds to an IP packet.
const ETHERNET: u64 = 14;
/// What is not payload in an IP packet of TCP: 20 bytes of IPv4, 20 of TCP, 12 of timestamps.
const TCP_HEADERS: u64 = 52;

/// What may pass at once after a pause, whatever is asked for: runtimes ask for 2^32 - 1 bits where nobody has asked, which would
/// void a limit for minutes. It has to cover what the kernel's timers may be late by.
const LONGEST_BURST: Milliseconds = 20;
/// Less would drop what is sent whole, and needs a timer for nearly every packet.
const SHORTEST_BURST_FRAMES: u64 = 10;
/// What may wait: TCP fills a queue until it is told by a loss, and has to keep the link busy with what is left of its window.
const QUEUE: Milliseconds = 50;
const SHORTEST_QUEUE_FRAMES: u64 = 50;

/// How late what has passed a queue may be seen on the other side of the link: a busy CPU takes it when it gets to it.
const GUARD_PATIENCE: Milliseconds = 100;

type Milliseconds = u64;

/// A token bucket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes of frames per second.
    rate: u64,
    /// Bytes of frames that may pass at once.
    burst: u32,
    /// Bytes of frames that may wait.
    queue: u32,
}

impl TokenBucket {
    /// The one that keeps a limit on a link of an MTU, in bytes.
    ///
    /// The kernel counts frames, who asks for a rate means what TCP carries: a full-sized segment's frame is so much larger than its
    /// payload, and the rate is larger by as much.
    pub fn new(limit: Limit, mtu: u32) -> Self {
        let mtu = u64::from(mtu);
        let frame = mtu + ETHERNET;
        let payload = mtu.saturating_sub(TCP_HEADERS).max(1);
        let rate = u128::from(limit.rate.get()) * u128::from(frame) / u128::from(payload) / 8;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        let within = |time: Milliseconds| (u128::from(rate) * u128::from(time) / 1000) as u64;
        let asked = limit.burst.map_or(u64::MAX, |bits| bits.get() / 8);
        let burst = asked.min(within(LONGEST_BURST)).max(SHORTEST_BURST_FRAMES * frame);
        let queue = within(QUEUE).max(SHORTEST_QUEUE_FRAMES * frame);
        let bytes = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self { rate, burst: bytes(burst), queue: bytes(queue) }
    }

    /// What lets through all that has passed this one, and little more: what a byte costs, picoseconds, and how many nanoseconds' worth may
    /// pass at once. A twentieth faster, and as much later as what has passed may be before it is counted.
    pub fn guard(&self) -> (u64, u64) {
        let picoseconds = 20 * 1_000_000_000_000 / (21 * u128::from(self.rate));
        let burst = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate);
        let credit = burst + u128::from(GUARD_PATIENCE) * 1_000_000;
        let bounded = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        (bounded(picoseconds), bounded(credit))
    }

    /// A request (`RTM_NEWQDISC`) to make it the root of a device. With `NLM_F_CREATE` and `NLM_F_REPLACE` it takes the place of whatever
    /// is there; one that is there already is changed.
    pub fn message(&self, device: u32) -> TcMessage {
        let mut parameters = [0; PARAMETERS_LENGTH];
        parameters[1] = TC_LINKLAYER_ETHERNET;
        parameters[RATE_AT..][..4].copy_from_slice(&self.rate_of_32_bits().to_ne_bytes());
        parameters[LIMIT_AT..][..4].copy_from_slice(&self.queue.to_ne_bytes());
        let mut options = vec![
            DefaultNla::new(TCA_TBF_PARMS, parameters.to_vec()),
            DefaultNla::new(TCA_TBF_BURST, self.burst.to_ne_bytes().to_vec()),
        ];
        if self.rate_of_32_bits() == u32::MAX {
            options.push(DefaultNla::new(TCA_TBF_RATE64, self.rate.to_ne_bytes().to_vec()));
        }
        let mut message = TcMessage::with_index(device as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes = vec![
            TcAttribute::Kind(KIND.to_owned()),
            TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()),
        ];
        message
    }

    /// Whether one of the kernel's answers (`RTM_NEWQDISC`) is about this one at the root of a device. The burst is not compared: the kernel
    /// tells it as a time in units of its own.
    pub fn is_told_by(&self, message: &TcMessage, device: u32) -> bool {
        message.header.index == device as i32
            && message.header.parent == TcHandle::ROOT
            && message.attributes.contains(&TcAttribute::Kind(KIND.to_owned()))
            && message.attributes.iter().any(|attribute| match attribute {
                TcAttribute::Options(options) => options.iter().any(|option| self.is_described_by(option)),
                _ => false,
            })
    }

    /// The library, which does not know this kind of queue, hands over all of its options as one.
    fn is_described_by(&self, option: &TcOption) -> bool {
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
        rate_of_64_bits.or(rate.map(u64::from)) == Some(self.rate) && queue == Some(self.queue)
    }

    /// The largest stands for all that need more bits.
    fn rate_of_32_bits(&self) -> u32 {
        u32::try_from(self.rate).unwrap_or(u32::MAX)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use netlink_packet_core::{Emitable as _, Parseable as _};

    use super::*;

    fn limit(rate: u64, burst: Option<u64>) -> Limit {
        Limit { rate: NonZeroU64::new(rate).unwrap(), burst: burst.and_then(NonZeroU64::new) }
    }

    /// As the kernel tells it: with a handle, and attributes of its own beside.
    fn told(bucket: &TokenBucket) -> TcMessage {
        let mut message = bucket.message(7);
        message.header.handle = TcHandle { major: 0x8001, minor: 0 };
        message.attributes.push(TcAttribute::HwOffload(0));
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        TcMessage::parse(&bytes[..]).unwrap()
    }

    #[test]
    fn the_rate_is_that_of_the_frames_that_carry_what_is_asked_for() {
        // 1398 bytes of payload in a frame of 1464.
        assert_eq!(TokenBucket::new(limit(1_398_000 * 8, None), 1450).rate, 1_464_000);
        // The largest that Kubernetes takes, 1P.
        let large = TokenBucket::new(limit(1_000_000_000_000_000, None), 65535);
        assert_eq!((large.burst, large.queue), (u32::MAX, u32::MAX));
        TokenBucket::new(limit(u64::MAX, Some(u64::MAX)), 68);
        TokenBucket::new(limit(1, Some(1)), 0);
    }

    #[test]
    fn the_burst_is_what_is_asked_for_within_bounds() {
        let burst = |asked| TokenBucket::new(limit(1_398_000 * 8, asked), 1450).burst;
        let most = 1_464_000 / 50;
        for unbounded in [None, Some((1 << 32) - 1), Some(u64::MAX)] {
            assert_eq!(burst(unbounded), most);
        }
        assert_eq!(burst(Some(8 * 20_000)), 20_000);
        assert_eq!(burst(Some(8)), 14_640);
    }

    #[test]
    fn the_guard_is_a_little_faster_and_more_patient() {
        for rate in [12_000, 10_000_000, 1_000_000_000, 10_000_000_000] {
            let bucket = TokenBucket::new(limit(rate, None), 1450);
            let (picoseconds, credit) = bucket.guard();
            let faster = 1e12 / picoseconds as f64 / bucket.rate as f64;
            assert!((1.04..1.06).contains(&faster), "{rate}: {faster}");
            let burst = f64::from(bucket.burst) / bucket.rate as f64 * 1e9;
            assert!((credit as f64 - burst - 1e8).abs() < 1e3, "{rate}: {credit}");
        }
        // Whoever may send more than the guard's picoseconds can tell is not guarded.
        assert_eq!(TokenBucket::new(limit(u64::MAX, None), 1450).guard().0, 0);
    }

    #[test]
    fn the_kernel_is_understood_and_anything_else_is_something_else() {
        for rate in [10_000_000, 100_000_000_000] {
            let bucket = TokenBucket::new(limit(rate, None), 1450);
            assert!(bucket.is_told_by(&told(&bucket), 7));
            assert!(!bucket.is_told_by(&told(&bucket), 8), "another device");
            assert!(!TokenBucket { rate: bucket.rate - 1, ..bucket }.is_told_by(&told(&bucket), 7));
            assert!(!TokenBucket { queue: bucket.queue - 1, ..bucket }.is_told_by(&told(&bucket), 7));
            let mut other = told(&bucket);
            other.header.parent = TcHandle::UNSPEC;
            assert!(!bucket.is_told_by(&other, 7), "not at the root");
            let mut other = told(&bucket);
            other.attributes[0] = TcAttribute::Kind("fq".to_owned());
            assert!(!bucket.is_told_by(&other, 7), "another kind");
        }
    }
}
