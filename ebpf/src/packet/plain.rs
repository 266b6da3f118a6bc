//! Plain packets, the most frequent ones: TCP or UDP in the middle of a flow, without fragments, IP
//! options and tags, with the headers in one piece. The programs read them in place, with few
//! instructions.

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{FlowKey, Macs},
    addr::{Be16, Mac, Quad},
    csum,
    flow::protocol,
    nat::{TCP_FIN, TCP_RST, TCP_SYN},
    reason::Drop,
};

use super::{Skb, ethertype};

const ETHERNET_LENGTH: usize = 14;
const UDP_END: usize = 42;
const TCP_END: usize = 54;
/// Flags and offset that are 0 in a whole datagram: more fragments, and the fragment offset.
const FRAGMENT: u16 = 0x3fff;

/// A plain packet, in the frame.
#[derive(Clone, Copy)]
pub struct Plain {
    frame: *const u8,
}

/// The front of a frame, up to the middle of the source address. A hop changes only fields in it.
#[repr(C, align(4))]
struct Front {
    macs: Macs,
    ethertype: Be16,
    version_length: u8,
    traffic_class: u8,
    length_identification: u32,
    fragment: Be16,
    ttl: u8,
    protocol: u8,
    checksum: Be16,
    source: [u8; 2],
}

impl Plain {
    /// Returns the frame's packet if it is a plain one that may travel on. All others, faulty
    /// packets included, are for [`Parsed`](super::Parsed).
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Option<Self> {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + UDP_END > end {
            return None;
        }
        let plain = Self { frame: start as *const u8 };
        let is_usual = plain.u16_at::<12>() == ethertype::IPV4.to_be()
            && plain.u8_at::<14>() == 0x45
            && plain.u16_at::<20>() & FRAGMENT.to_be() == 0
            && plain.u8_at::<22>() > 1
            && plain.u8_at::<0>() & 1 == 0
            && !ctx.has_vlan_tag();
        if !is_usual {
            return None;
        }
        let headers = match plain.protocol() {
            protocol::TCP if start + TCP_END <= end => {
                if plain.u8_at::<47>() & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
                    return None;
                }
                TCP_END
            }
            protocol::UDP => UDP_END,
            _ => return None,
        };
        // The kernel rewrites the length field of a large segment when it cuts the segment.
        if ctx.segment_payload() == 0 {
            let length = usize::from(u16::from_be(plain.u16_at::<16>())) + ETHERNET_LENGTH;
            if length < headers || length > ctx.bytes() as usize {
                return None;
            }
        }
        Some(plain)
    }

    /// Returns the key of the packet's flow.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        FlowKey {
            source: Quad::from_be32(self.u32_at::<26>()),
            destination: Quad::from_be32(self.u32_at::<30>()),
            source_port: Be16 { bytes: self.u16_at::<34>().to_ne_bytes() },
            destination_port: Be16 { bytes: self.u16_at::<36>().to_ne_bytes() },
            protocol: self.protocol().into(),
        }
    }

    /// Returns whether the frame comes from a link address.
    #[inline(always)]
    pub fn is_from(&self, mac: &Mac) -> bool {
        let words: *const u16 = core::ptr::from_ref(mac).cast();
        // SAFETY: three aligned words. Volatile: otherwise the compiler would read them at once and
        // take them apart again.
        let word = |index| unsafe { words.add(index).read_volatile() };
        self.u16_at::<6>() == word(0) && self.u16_at::<8>() == word(1) && self.u16_at::<10>() == word(2)
    }

    /// Decrements the TTL, as a router does, and replaces the frame's link addresses.
    ///
    /// # Errors
    /// [`Drop::RewriteFailed`].
    #[inline(always)]
    pub fn pass_on(self, ctx: &TcContext, macs: Macs) -> Result<(), Drop> {
        let (ttl, protocol) = (self.u8_at::<22>(), self.protocol());
        let sum = csum::replace(
            self.u16_at::<24>(),
            u16::from_ne_bytes([ttl, protocol]),
            u16::from_ne_bytes([ttl - 1, protocol]),
        );
        let front = Front {
            macs,
            ethertype: Be16::new(ethertype::IPV4),
            version_length: 0x45,
            traffic_class: self.u8_at::<15>(),
            length_identification: self.u32_at::<16>(),
            fragment: Be16 { bytes: self.u16_at::<20>().to_ne_bytes() },
            ttl: ttl - 1,
            protocol,
            checksum: Be16 { bytes: sum.to_ne_bytes() },
            source: self.u16_at::<26>().to_ne_bytes(),
        };
        ctx.store_at(0, &front)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.u8_at::<23>()
    }

    #[inline(always)]
    fn u8_at<const OFFSET: usize>(&self) -> u8 {
        const { assert!(OFFSET < TCP_END) };
        // SAFETY: within the headers that `of` has checked. The verifier refuses a read beyond the
        // frame.
        unsafe { *self.frame.add(OFFSET) }
    }

    #[inline(always)]
    fn u16_at<const OFFSET: usize>(&self) -> u16 {
        // SAFETY: within the headers, see `u8_at`. No frame begins at an odd address.
        unsafe { *self.frame.add(OFFSET).cast() }
    }

    #[inline(always)]
    fn u32_at<const OFFSET: usize>(&self) -> u32 {
        // SAFETY: within the headers, see `u8_at`. On machines that can read only aligned words, IP
        // headers are aligned.
        unsafe { *self.frame.add(OFFSET).cast() }
    }
}
