//! Plain packets, the most frequent ones: TCP or UDP in the middle of a flow, without fragments, IP
//! options, extension headers and tags, with the headers in one piece. The programs read them in
//! place, with few instructions.

use core::marker::PhantomData;

use aya_ebpf::programs::TcContext;
use podwire_common::{
    abi::{Flow, FlowKey, Macs},
    addr::{Addr, Be16, Mac, Quad},
    csum,
    flow::{FlowAddr, protocol},
    nat::{TCP_FIN, TCP_RST, TCP_SYN},
};

use super::{ETHERNET_LENGTH, Ip, Ipv4, Ipv6, Skb, ethertype};

/// Offset of the IP header in a frame.
const IP: usize = ETHERNET_LENGTH as usize;
/// Bytes of a UDP header.
const UDP: usize = 8;
/// Bytes of a TCP header without options.
const TCP: usize = 20;
/// Offset of the flags in a TCP header.
const TCP_FLAGS: usize = 13;
/// Flags and offset that are 0 in a whole IPv4 datagram: more fragments, and the fragment offset.
const FRAGMENT: u16 = 0x3fff;
/// Version and header length of an IPv4 header without options.
const IPV4_WITHOUT_OPTIONS: u8 = 0x45;

/// A plain packet, in the frame.
#[derive(Clone, Copy)]
pub struct Plain<I> {
    frame: *const u8,
    family: PhantomData<I>,
}

/// A family of IP with plain packets: where their fields are.
pub trait PlainIp: Ip {
    /// Bytes of the header.
    const LENGTH: usize;
    /// Offset of the time to live in the header.
    const TTL: usize;
    /// Offset of the transport's protocol number in the header.
    const PROTOCOL: usize;
    /// The front of a frame, as on the wire. A hop changes only fields in it.
    type Front;

    /// Returns whether the header has neither options nor extensions and is of no fragment.
    fn is_usual(plain: Plain<Self>) -> bool;
    /// Returns the bytes of header and payload, as the header says.
    fn length_of(plain: Plain<Self>) -> usize;
    /// Returns the key of the packet's flow.
    fn key(plain: Plain<Self>) -> <Self::FlowAddr as FlowAddr>::Key;
    /// Returns the front of the frame with a lower TTL, as a router decrements it, and these link
    /// addresses.
    fn forwarded(plain: Plain<Self>, macs: Macs) -> Self::Front;
}

impl<I: PlainIp> Plain<I> {
    /// Returns the frame's packet if it is a plain one that may travel on. All others, faulty
    /// packets included, are for [`Parsed`](super::Parsed).
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Option<Self> {
        let (start, end) = (ctx.data(), ctx.data_end());
        if start + IP + I::LENGTH + UDP > end {
            return None;
        }
        let plain = Self { frame: start as *const u8, family: PhantomData };
        let is_usual = plain.u16_at(12) == I::ETHERTYPE.to_be()
            && I::is_usual(plain)
            && plain.u8_at(IP + I::TTL) > 1
            && plain.u8_at(0) & 1 == 0
            && !ctx.has_vlan_tag();
        if !is_usual {
            return None;
        }
        let headers = match plain.protocol() {
            protocol::TCP if start + IP + I::LENGTH + TCP <= end => {
                if plain.u8_at(IP + I::LENGTH + TCP_FLAGS) & (TCP_SYN | TCP_FIN | TCP_RST) != 0 {
                    return None;
                }
                I::LENGTH + TCP
            }
            protocol::UDP => I::LENGTH + UDP,
            _ => return None,
        };
        // The kernel rewrites the length field of a large segment when it cuts the segment.
        if ctx.segment_payload() == 0 {
            let length = I::length_of(plain);
            if length < headers || length + IP > ctx.bytes() as usize {
                return None;
            }
        }
        Some(plain)
    }

    /// Returns the key of the packet's flow.
    #[inline(always)]
    pub fn key(&self) -> <I::FlowAddr as FlowAddr>::Key {
        I::key(*self)
    }

    /// Returns whether the frame comes from a link address.
    #[inline(always)]
    pub fn is_from(&self, mac: &Mac) -> bool {
        let words: *const u16 = core::ptr::from_ref(mac).cast();
        // SAFETY: three aligned words. Volatile: otherwise the compiler would read them at once and
        // take them apart again.
        let word = |index| unsafe { words.add(index).read_volatile() };
        self.u16_at(6) == word(0) && self.u16_at(8) == word(1) && self.u16_at(10) == word(2)
    }

    /// Returns what the front of the frame becomes on its next hop, with these link addresses. It
    /// is for [`Skb::store_at`] 0: no NIC has summed up a packet that comes from a pod, since a pod
    /// that forwards drops such a sum (see `rewrite::store_in_header`).
    #[inline(always)]
    pub fn forwarded(self, macs: Macs) -> I::Front {
        I::forwarded(self, macs)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.u8_at(IP + I::PROTOCOL)
    }

    // The offsets are constants. They lie within the headers that `of` has checked; the verifier
    // refuses a read beyond them.
    #[inline(always)]
    fn u8_at(&self, offset: usize) -> u8 {
        // SAFETY: within the headers.
        unsafe { *self.frame.add(offset) }
    }

    #[inline(always)]
    fn u16_at(&self, offset: usize) -> u16 {
        // SAFETY: within the headers, see `u8_at`. No frame begins at an odd address.
        unsafe { *self.frame.add(offset).cast() }
    }

    #[inline(always)]
    fn u32_at(&self, offset: usize) -> u32 {
        // SAFETY: within the headers, see `u8_at`. On machines that can read only aligned words, IP
        // headers are aligned.
        unsafe { *self.frame.add(offset).cast() }
    }

    #[inline(always)]
    fn be16_at(&self, offset: usize) -> Be16 {
        Be16 { bytes: self.u16_at(offset).to_ne_bytes() }
    }
}

/// The front of an IPv4 frame, up to the middle of the source address.
#[repr(C, align(4))]
pub struct Front {
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

impl PlainIp for Ipv4 {
    const LENGTH: usize = 20;
    const TTL: usize = 8;
    const PROTOCOL: usize = 9;
    type Front = Front;

    #[inline(always)]
    fn is_usual(plain: Plain<Self>) -> bool {
        plain.u8_at(IP) == IPV4_WITHOUT_OPTIONS && plain.u16_at(IP + 6) & FRAGMENT.to_be() == 0
    }

    #[inline(always)]
    fn length_of(plain: Plain<Self>) -> usize {
        usize::from(plain.be16_at(IP + 2).get())
    }

    #[inline(always)]
    fn key(plain: Plain<Self>) -> FlowKey {
        FlowKey {
            source: Quad::from_be32(plain.u32_at(IP + 12)),
            destination: Quad::from_be32(plain.u32_at(IP + 16)),
            source_port: plain.be16_at(IP + 20),
            destination_port: plain.be16_at(IP + 22),
            protocol: plain.protocol().into(),
        }
    }

    #[inline(always)]
    fn forwarded(plain: Plain<Self>, macs: Macs) -> Front {
        let (ttl, protocol) = (plain.u8_at(IP + Self::TTL), plain.protocol());
        let sum = csum::replace(
            plain.u16_at(IP + 10),
            u16::from_ne_bytes([ttl, protocol]),
            u16::from_ne_bytes([ttl - 1, protocol]),
        );
        Front {
            macs,
            ethertype: Be16::new(ethertype::IPV4),
            version_length: IPV4_WITHOUT_OPTIONS,
            traffic_class: plain.u8_at(IP + 1),
            length_identification: plain.u32_at(IP + 2),
            fragment: plain.be16_at(IP + 6),
            ttl: ttl - 1,
            protocol,
            checksum: Be16 { bytes: sum.to_ne_bytes() },
            source: plain.u16_at(IP + 12).to_ne_bytes(),
        }
    }
}

/// The front of an IPv6 frame, up to the first two bytes of the source address.
#[repr(C, align(4))]
pub struct Front6 {
    macs: Macs,
    ethertype: Be16,
    version_class: u16,
    label: u16,
    payload_length: u16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 2],
}

// No padding: it would be stored too.
const _: () = assert!(size_of::<Front>() == 28 && size_of::<Front6>() == 24);

impl PlainIp for Ipv6 {
    const LENGTH: usize = 40;
    const TTL: usize = 7;
    const PROTOCOL: usize = 6;
    type Front = Front6;

    // Extension headers have protocol numbers of their own.
    #[inline(always)]
    fn is_usual(plain: Plain<Self>) -> bool {
        plain.u8_at(IP) >> 4 == 6
    }

    #[inline(always)]
    fn length_of(plain: Plain<Self>) -> usize {
        usize::from(plain.be16_at(IP + 4).get()) + Self::LENGTH
    }

    #[inline(always)]
    fn key(plain: Plain<Self>) -> Flow {
        let address = |at| Addr::from_words([0, 4, 8, 12].map(|word| plain.u32_at(at + word)));
        let (source_port, destination_port) = (plain.be16_at(IP + 40), plain.be16_at(IP + 42));
        Flow::new(address(IP + 8), address(IP + 24), source_port, destination_port, plain.protocol())
    }

    #[inline(always)]
    fn forwarded(plain: Plain<Self>, macs: Macs) -> Front6 {
        Front6 {
            macs,
            ethertype: Be16::new(ethertype::IPV6),
            version_class: plain.u16_at(IP),
            label: plain.u16_at(IP + 2),
            payload_length: plain.u16_at(IP + 4),
            next_header: plain.protocol(),
            hop_limit: plain.u8_at(IP + Self::TTL) - 1,
            source: plain.u16_at(IP + 8).to_ne_bytes(),
        }
    }
}
