//! Converts a pod's limit to the parameters of the kernel's token bucket filter (tc-tbf(8)), and of
//! the guard behind it.

/// Bytes that the link adds to an IP packet.
const ETHERNET: u64 = 14;
/// Bytes of a TCP packet that are not payload: 20 of IPv4, 20 of TCP, 12 of timestamps.
const TCP_HEADERS: u64 = 52;

/// The longest burst after a pause, even if the runtime asks for more. Runtimes ask for 2^32 - 1
/// bits if the user sets no burst, and such a burst would void a limit for minutes. The burst must
/// also cover how late the kernel's timers may fire.
const LONGEST_BURST: Milliseconds = 20;
/// With a smaller burst, the filter would drop packets that it cannot split, and would need a timer
/// for nearly every packet.
const SHORTEST_BURST_FRAMES: u64 = 10;
/// How much may wait. TCP fills a queue until it notices a loss. The rest of its window must then
/// keep the link busy.
const QUEUE: Milliseconds = 50;
const SHORTEST_QUEUE_FRAMES: u64 = 50;

/// How late the programs may see a packet that has passed the queue: a busy CPU handles it with a
/// delay.
const GUARD_PATIENCE: Milliseconds = 100;

type Milliseconds = u64;

/// A token bucket filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes of frames per second.
    pub rate: u64,
    /// Bytes of frames that may pass at once.
    pub burst: u32,
    /// Bytes of frames that may wait.
    pub queue: u32,
}

impl TokenBucket {
    /// Returns the filter that keeps a limit on a link: `rate` in bits per second, `burst` in bits,
    /// `mtu` in bytes.
    ///
    /// The kernel counts frames, but a requested rate means TCP payload. So the filter's rate is
    /// the requested rate, times the frame size of a full-sized segment, divided by its payload.
    pub fn new(rate: u64, burst: Option<u64>, mtu: u32) -> Self {
        let mtu = u64::from(mtu);
        let frame = mtu + ETHERNET;
        let payload = mtu.saturating_sub(TCP_HEADERS).max(1);
        let rate = u128::from(rate) * u128::from(frame) / u128::from(payload) / 8;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX).max(1);
        let within = |time: Milliseconds| (u128::from(rate) * u128::from(time) / 1000) as u64;
        let asked = burst.map_or(u64::MAX, |bits| bits / 8);
        let burst = asked.min(within(LONGEST_BURST)).max(SHORTEST_BURST_FRAMES * frame);
        let queue = within(QUEUE).max(SHORTEST_QUEUE_FRAMES * frame);
        let bytes = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Self { rate, burst: bytes(burst), queue: bytes(queue) }
    }

    /// Returns the guard's numbers: the cost of a byte in picoseconds, and the credit in
    /// nanoseconds. Bytes that together cost no more than the credit may pass at once.
    ///
    /// The guard lets everything through that has passed this filter, and little more: its rate is
    /// a twentieth higher. Its burst is longer by `GUARD_PATIENCE`, because packets may be counted
    /// that late.
    pub fn guard(&self) -> (u64, u64) {
        let picoseconds = 20 * 1_000_000_000_000 / (21 * u128::from(self.rate));
        let burst = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate);
        let credit = burst + u128::from(GUARD_PATIENCE) * 1_000_000;
        let bounded = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        (bounded(picoseconds), bounded(credit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_frames_that_carry_what_is_asked_for() {
        // 1398 bytes of payload in a frame of 1464.
        assert_eq!(TokenBucket::new(1_398_000 * 8, None, 1450).rate, 1_464_000);
        // 1P is the largest rate that Kubernetes takes.
        let large = TokenBucket::new(1_000_000_000_000_000, None, 65535);
        assert_eq!((large.burst, large.queue), (u32::MAX, u32::MAX));
        TokenBucket::new(u64::MAX, Some(u64::MAX), 68);
        TokenBucket::new(1, Some(1), 0);
    }

    #[test]
    fn the_burst_is_what_is_asked_for_within_bounds() {
        let burst = |asked| TokenBucket::new(1_398_000 * 8, asked, 1450).burst;
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
            let bucket = TokenBucket::new(rate, None, 1450);
            let (picoseconds, credit) = bucket.guard();
            let faster = 1e12 / picoseconds as f64 / bucket.rate as f64;
            assert!((1.04..1.06).contains(&faster), "{rate}: {faster}");
            let burst = f64::from(bucket.burst) / bucket.rate as f64 * 1e9;
            assert!((credit as f64 - burst - 1e8).abs() < 1e3, "{rate}: {credit}");
        }
        // Whole picoseconds cannot express the cost of a byte at such a rate: the guard lets
        // everything pass.
        assert_eq!(TokenBucket::new(u64::MAX, None, 1450).guard().0, 0);
    }
}
