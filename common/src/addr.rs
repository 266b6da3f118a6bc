//! Addresses and numbers in network byte order, stored as byte arrays so that `bpftool` prints them
//! readably.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IP address of either family: 16 bytes in network order, IPv4 as v4-mapped (`::ffff:a.b.c.d`,
/// RFC 4291 section 2.5.5.2). The last four bytes of an IPv4 address are the dotted quad.
///
/// The type is aligned: for BPF, the compiler copies and compares unaligned types byte by byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr {
    /// Network order.
    pub bytes: [u8; 16],
}

impl Addr {
    /// The address that stands for "none": `::`.
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };
    /// Bits of a v4-mapped address before its IPv4 part. Add them to an IPv4 prefix length in an
    /// LPM key.
    pub const V4_PREFIX_BITS: u32 = 96;

    /// Returns the v4-mapped form of four bytes in network order.
    #[inline(always)]
    pub const fn from_v4(quad: [u8; 4]) -> Self {
        let [a, b, c, d] = quad;
        Self { bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] }
    }

    /// Returns the last four bytes: the IPv4 address of a v4-mapped one, in network order.
    #[inline(always)]
    pub const fn v4(&self) -> [u8; 4] {
        [self.bytes[12], self.bytes[13], self.bytes[14], self.bytes[15]]
    }

    /// Returns the last four bytes as the integer that BPF helpers take for a `__be32`: network
    /// order in memory.
    #[inline(always)]
    pub const fn v4_be32(&self) -> u32 {
        u32::from_ne_bytes(self.v4())
    }

    /// Returns whether this is a v4-mapped address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        let [first, second, third, _] = self.words();
        first == 0 && second == 0 && third == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Returns the four words of the address, as they lie in memory.
    // As words: the compiler reads each at once, and not byte by byte.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let b = &self.bytes;
        [
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ]
    }

    /// Returns the address of which these are the words, as they lie in memory.
    #[inline(always)]
    pub const fn from_words([first, second, third, fourth]: [u32; 4]) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
        let ([i, j, k, l], [m, n, o, p]) = (third.to_ne_bytes(), fourth.to_ne_bytes());
        Self { bytes: [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] }
    }

    /// Returns whether this is an IPv6 multicast address: ff00::/8 (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        self.bytes[0] == 0xff
    }

    /// Returns whether this is an IPv6 link-local unicast address: fe80::/10 (RFC 4291 section
    /// 2.5.6).
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }

    /// Returns whether no IPv6 packet on a wire may have this source or destination: `::`, `::1` or
    /// a v4-mapped address.
    #[inline(always)]
    pub fn is_never_on_a_wire(&self) -> bool {
        let [first, second, third, last] = self.words();
        let is_mapped = third == u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        let is_none_or_loopback = third == 0 && (last == 0 || last == u32::from_ne_bytes([0, 0, 0, 1]));
        first == 0 && second == 0 && (is_mapped || is_none_or_loopback)
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4(address.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(address: Ipv6Addr) -> Self {
        Self { bytes: address.octets() }
    }
}

impl From<IpAddr> for Addr {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(address: Addr) -> Self {
        if address.is_v4() {
            Self::V4(Ipv4Addr::from(address.v4()))
        } else {
            Self::V6(Ipv6Addr::from(address.bytes))
        }
    }
}

#[cfg(any(test, feature = "std"))]
impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

/// An IPv4 address alone. Aligned for the same reason as [`Addr`].
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quad {
    /// Network order.
    pub bytes: [u8; 4],
}

impl Quad {
    /// Returns the last four bytes of an address.
    #[inline(always)]
    pub const fn of(address: &Addr) -> Self {
        // As one word: the compiler reads it at once, and not byte by byte.
        Self::from_be32(address.v4_be32())
    }

    /// Returns the integer that BPF helpers take for a `__be32`: network order in memory.
    #[inline(always)]
    pub const fn be32(self) -> u32 {
        u32::from_ne_bytes(self.bytes)
    }

    /// Returns the v4-mapped address.
    #[inline(always)]
    pub const fn address(self) -> Addr {
        Addr::from_v4(self.bytes)
    }

    /// Converts the integer that BPF helpers take for a `__be32`: network order in memory.
    #[inline(always)]
    pub const fn from_be32(address: u32) -> Self {
        Self { bytes: address.to_ne_bytes() }
    }
}

#[cfg(any(test, feature = "std"))]
impl core::fmt::Debug for Quad {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&Ipv4Addr::from(self.bytes), f)
    }
}

/// An [`Addr`] in the key of an LPM trie. That key is packed, so its parts cannot be aligned.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LpmAddr {
    /// As [`Addr::bytes`].
    pub bytes: [u8; 16],
}

impl From<Addr> for LpmAddr {
    #[inline(always)]
    fn from(address: Addr) -> Self {
        Self { bytes: address.bytes }
    }
}

impl From<LpmAddr> for Addr {
    fn from(address: LpmAddr) -> Self {
        Self { bytes: address.bytes }
    }
}

/// An Ethernet address. Aligned for the same reason as [`Addr`].
#[repr(C, align(2))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Mac {
    /// The bytes in the order of the wire.
    pub bytes: [u8; 6],
}

impl Mac {
    /// Returns whether the group bit is set: multicast and broadcast (IEEE 802 section 8.2).
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        self.bytes[0] & 1 == 1
    }

    /// Returns whether both addresses are equal. Compares words, because for BPF the compiler would
    /// compare byte by byte.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        let ([a, b, c, d, e, f], [g, h, i, j, k, l]) = (self.bytes, other.bytes);
        u16::from_ne_bytes([a, b]) == u16::from_ne_bytes([g, h])
            && u16::from_ne_bytes([c, d]) == u16::from_ne_bytes([i, j])
            && u16::from_ne_bytes([e, f]) == u16::from_ne_bytes([k, l])
    }

    /// Returns whether this is `ff:ff:ff:ff:ff:ff`.
    #[inline(always)]
    pub fn is_broadcast(&self) -> bool {
        let mut index = 0;
        while index < 6 {
            if self.bytes[index] != 0xff {
                return false;
            }
            index += 1;
        }
        true
    }
}

#[cfg(any(test, feature = "std"))]
impl core::fmt::Debug for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A 16-bit number in network byte order. Aligned for the same reason as [`Addr`].
#[repr(C, align(2))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Be16 {
    /// Most significant byte first.
    pub bytes: [u8; 2],
}

impl Be16 {
    /// Zero.
    pub const ZERO: Self = Self { bytes: [0; 2] };

    /// Converts a number in host order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self { bytes: host.to_be_bytes() }
    }

    /// Returns the number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }

    /// Returns the integer that BPF helpers take for a `__be16`: network order in memory.
    #[inline(always)]
    pub const fn be16(self) -> u16 {
        u16::from_ne_bytes(self.bytes)
    }
}

#[cfg(any(test, feature = "std"))]
impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.get(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_either_family_survives_the_way_there_and_back() {
        for text in ["10.244.1.2", "0.0.0.0", "255.255.255.255", "fd00::1", "::", "::ffff:10.0.0.1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(address)), address.to_canonical(), "{text}");
        }
    }

    #[test]
    fn group_addresses_are_told_from_unicast() {
        assert!(Mac { bytes: [0xff; 6] }.is_broadcast());
        assert!(Mac { bytes: [0x33, 0x33, 0, 0, 0, 1] }.is_group());
        assert!(!Mac { bytes: [0x33, 0x33, 0, 0, 0, 1] }.is_broadcast());
        assert!(!Mac { bytes: [2, 0, 0, 0, 0, 1] }.is_group());
    }
}
