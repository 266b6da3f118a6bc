//! Payload that reveals a lost, doubled, moved or changed byte. The receiver compares every byte,
//! which is stricter than a checksum.

use std::sync::OnceLock;

use anyhow::{Result, ensure};

/// The period of the payload, bytes. It is a prime, so that a shift by a packet, a page or a window
/// never gives the same bytes.
const PERIOD: usize = 1_048_573;
/// The largest piece, bytes.
pub(crate) const PIECE: usize = 256 * 1024;

/// Returns the bytes from an offset on.
pub(crate) fn piece(offset: u64, length: usize) -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| {
        // Knuth's 64-bit linear congruential generator.
        let mut state = 0x853c_49e6_748f_ea9b_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let period: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        [&period[..], &period[..PIECE]].concat()
    });
    let start = (offset % PERIOD as u64) as usize;
    &pattern[start..start + length.min(PIECE)]
}

/// Fails unless these are the bytes from that offset on.
pub(crate) fn compare(offset: u64, bytes: &[u8]) -> Result<()> {
    let expected = piece(offset, bytes.len());
    ensure!(
        bytes == expected,
        "the bytes from {offset} on ({}) did not arrive as they were sent",
        bytes.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_known_by_their_offset() {
        compare(5_000_000_000, piece(5_000_000_000, PIECE)).unwrap();
        compare(5_000_000_001, piece(5_000_000_000, PIECE)).unwrap_err();
        let mut changed = piece(0, 1500).to_vec();
        changed[1499] ^= 1;
        compare(0, &changed).unwrap_err();
    }
}
