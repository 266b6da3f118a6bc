//! Internet checksum arithmetic (RFC 1071, RFC 1624).

/// Returns the sum of 16-bit words, folded to 16 bits in one's complement arithmetic.
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Returns a checksum after one of the 16-bit words that it covers has changed (RFC 1624, equation
/// 3). All three have the same byte order, no matter which.
#[inline(always)]
pub const fn replace(checksum: u16, old: u16, new: u16) -> u16 {
    let sum = !checksum as u32 + !old as u32 + new as u32;
    !fold(sum)
}

/// Returns a checksum after four of the bytes that it covers have changed. The four bytes begin at
/// an even offset. Words are big-endian.
#[inline(always)]
pub const fn replace_quad(checksum: u16, old: [u8; 4], new: [u8; 4]) -> u16 {
    let half = replace(checksum, u16::from_be_bytes([old[0], old[1]]), u16::from_be_bytes([new[0], new[1]]));
    replace(half, u16::from_be_bytes([old[2], old[3]]), u16::from_be_bytes([new[2], new[3]]))
}

/// Returns a checksum after an IPv6 address that it covers was replaced. The address begins at an
/// even offset. The checksum is big-endian.
#[inline(always)]
pub const fn replace_address(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
    let (mut sum, mut at) = (!checksum as u32, 0);
    while at < 16 {
        sum += !u16::from_be_bytes([old[at], old[at + 1]]) as u32;
        sum += u16::from_be_bytes([new[at], new[at + 1]]) as u32;
        at += 2;
    }
    !fold(sum)
}

/// Returns the change of a sum over these bytes, in the form of the kernel's `csum_sub`: in the order
/// of this machine, not folded to 16 bits.
#[inline(always)]
pub const fn change([a, b]: [[u8; 4]; 2], [c, d]: [[u8; 4]; 2]) -> u32 {
    let old = !u32::from_ne_bytes(a) as u64 + !u32::from_ne_bytes(b) as u64;
    let sum = old + u32::from_ne_bytes(c) as u64 + u32::from_ne_bytes(d) as u64;
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum + (sum >> 32)) as u32
}

/// Returns a checksum after a [`change`] of what it covers. It has the order of this machine, as if
/// a word had been read from the packet.
#[inline(always)]
pub const fn changed(checksum: u16, change: u32) -> u16 {
    let change = (change & 0xffff) + (change >> 16);
    !fold(!checksum as u32 + change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the checksum of whole words, computed from scratch.
    fn of_bytes(bytes: &[u8; 20]) -> u16 {
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        !fold(words.sum())
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_new_sum(mut header in any::<[u8; 20]>(), word in 0usize..10, new in any::<[u8; 2]>()) {
            // Word 5 is the checksum field itself, which the checksum does not cover.
            prop_assume!(word != 5);
            header[10] = 0;
            header[11] = 0;
            let before = of_bytes(&header);
            let old = [header[word * 2], header[word * 2 + 1]];
            header[word * 2..word * 2 + 2].copy_from_slice(&new);
            let updated = replace(before, u16::from_be_bytes(old), u16::from_be_bytes(new));
            // 0x0000 and 0xffff mean the same.
            prop_assert_eq!(updated % 0xffff, of_bytes(&header) % 0xffff);
        }
    }

    proptest! {
        #[test]
        fn four_bytes_replaced_at_once_equal_a_new_sum(mut header in any::<[u8; 20]>(), at in prop::sample::select(&[0usize, 2, 4, 6, 12, 14, 16][..]), new in any::<[u8; 4]>()) {
            header[10] = 0;
            header[11] = 0;
            let before = of_bytes(&header);
            let old = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            header[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(replace_quad(before, old, new) % 0xffff, of_bytes(&header) % 0xffff);
        }
    }

    proptest! {
        #[test]
        fn a_replaced_address_equals_a_new_sum(mut header in any::<[u8; 20]>(), new in any::<[u8; 16]>()) {
            (header[0], header[1]) = (0, 0);
            let before = of_bytes(&header);
            let old: [u8; 16] = header[4..].try_into().unwrap();
            header[4..].copy_from_slice(&new);
            prop_assert_eq!(replace_address(before, &old, &new) % 0xffff, of_bytes(&header) % 0xffff);
        }
    }

    proptest! {
        #[test]
        fn a_change_of_two_words_equals_a_new_sum(mut header in any::<[u8; 20]>(), new in any::<[[u8; 4]; 2]>()) {
            (header[0], header[1]) = (0, 0);
            let before = of_bytes(&header);
            let old = [12, 16].map(|at| header[at..at + 4].try_into().unwrap());
            header[12..].copy_from_slice(&new.concat());
            // The functions take and return words in the order of this machine.
            let after = u16::from_be(changed(before.to_be(), change(old, new)));
            prop_assert_eq!(after % 0xffff, of_bytes(&header) % 0xffff);
        }
    }

    #[test]
    fn the_checksum_of_a_known_header() {
        // A captured header with its checksum set to zero.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(of_bytes(&header), 0xb861);
    }
}
