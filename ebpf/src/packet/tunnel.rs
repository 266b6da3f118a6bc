//! VXLAN: the outer headers (RFC 7348). They are written and removed here or by the VXLAN device.

use aya_ebpf::{
    bindings::{
        BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_tunnel_key,
    },
    programs::TcContext,
};
use podwire_common::{
    abi::FAMILY_IPV6,
    addr::{Addr, Be16, Mac},
    flow::protocol,
    names::{INNER_SOURCE_MAC, VXLAN_OVERHEAD, VXLAN_OVERHEAD_IPV6},
    reason::Drop,
};

use super::{FixedPart, Headers, Ip, Ipv4, Ipv6, Skb, Way, checksum, ethertype};
use crate::helpers::{self, bpf_get_prandom_u32, bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key};

/// Bytes from the start of the outer Ethernet header to the start of the inner one, over IPv4.
/// Encapsulation adds as many bytes to a frame.
pub const OUTER_LENGTH: u32 = VXLAN_OVERHEAD;
/// The same over IPv6.
pub const OUTER_LENGTH6: u32 = VXLAN_OVERHEAD_IPV6;
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
/// The flag "the VNI is valid".
const VXLAN_FLAGS: u8 = 0x08;
const INNER_ETHERNET: u64 = 14;
const ENCAPSULATE: u64 =
    (BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO) as u64
        | ((INNER_ETHERNET & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT);

/// The fields in which outer headers differ.
pub struct Outer {
    /// Whether they are of IPv6.
    pub is_ipv6: bool,
    /// Source port, derived from the inner flow.
    pub source_port: Be16,
    /// The tunnel's port.
    pub destination_port: Be16,
    /// Network identifier, host order.
    pub vni: u32,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The inner packet's flag, so that path MTU discovery sees the tunnel.
    pub dont_fragment: bool,
    /// Link destination of the inner frame.
    pub inner_destination_mac: Mac,
}

/// Adds the outer headers and an inner Ethernet header in front of the IP packet, and replaces the
/// packet's own header with `inner`.
///
/// # Errors
/// [`Refused`] when the kernel does not let the frame grow; the frame is unchanged. The kernel
/// refuses a frame that it takes for encapsulated already. A pod's own tunnel has encapsulated it,
/// or an earlier decapsulation has left the kernel's mark behind.
#[inline(always)]
pub fn encapsulate<I: Ip>(
    ctx: &TcContext,
    way: &Way,
    outer: &Outer,
    inner: &I::FixedPart,
) -> Result<Result<(), Drop>, Refused> {
    // IPv4 takes the VXLAN device into a tunnel of IPv6: its programs stay small.
    let is_ipv6 = I::FAMILY == FAMILY_IPV6 && outer.is_ipv6;
    let (length, family) = match is_ipv6 {
        false => (OUTER_LENGTH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4),
        true => (OUTER_LENGTH6, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6),
    };
    let flags = ENCAPSULATE | u64::from(family);
    helpers::adjust_room(ctx, length as i32, BPF_ADJ_ROOM_MAC, flags).map_err(|_| Refused)?;
    Ok(match is_ipv6 {
        false => store_outer::<I>(ctx, way, outer, inner),
        true => store_outer6::<I>(ctx, way, outer, inner),
    })
}

/// The kernel refused to change the room for headers; nothing happened to the frame.
pub struct Refused;

#[inline(never)]
fn store_outer<I: Ip>(ctx: &TcContext, way: &Way, outer: &Outer, inner: &I::FixedPart) -> Result<(), Drop> {
    // The kernel rewrites both lengths of a large segment when it cuts the segment.
    let length = ctx.bytes() as u16;
    let ip_length = length.wrapping_sub(14);
    let (fragment, identification) = match outer.dont_fragment {
        true => (DONT_FRAGMENT, 0),
        // SAFETY: a helper without arguments.
        false => (0, unsafe { bpf_get_prandom_u32() } as u16),
    };
    let [_, a, b, c] = outer.vni.to_be_bytes();
    let mut headers = OuterHeaders {
        outer: Headers {
            // The kernel writes the link addresses when it has resolved the next hop.
            destination_mac: Mac::default(),
            source_mac: Mac::default(),
            ethertype: Be16::new(ethertype::IPV4),
            ip: Ipv4 {
                version_length: 0x45,
                traffic_class: outer.traffic_class,
                total_length: Be16::new(ip_length),
                identification: identification.to_ne_bytes(),
                fragment: Be16::new(fragment),
                ttl: TTL,
                protocol: protocol::UDP,
                checksum: Be16::ZERO,
                source: way.source.v4(),
                destination: way.destination.v4(),
            },
        },
        source_port: outer.source_port,
        destination_port: outer.destination_port,
        udp_length: Be16::new(ip_length.wrapping_sub(20)),
        // No checksum: receivers keep their receive offload, and the inner checksum covers what
        // matters (RFC 6935).
        udp_checksum: Be16::ZERO,
        vxlan: [VXLAN_FLAGS, 0, 0, 0, a, b, c, 0],
        inner_destination_mac: outer.inner_destination_mac,
        inner_source_mac: Mac { bytes: INNER_SOURCE_MAC },
        inner_ethertype: Be16::new(I::ETHERTYPE),
        inner: *inner,
    };
    headers.outer.ip.checksum = checksum::of_ip(&headers.outer.ip);
    ctx.store_at(0, &headers)
}

// In two parts, because the stack has no room for the whole.
#[inline(never)]
fn store_outer6<I: Ip>(ctx: &TcContext, way: &Way, outer: &Outer, inner: &I::FixedPart) -> Result<(), Drop> {
    // The kernel rewrites both lengths of a large segment when it cuts the segment.
    let length = Be16::new((ctx.bytes() as u16).wrapping_sub(14 + 40));
    let class = outer.traffic_class;
    // The flow label spreads flows, as the source port does (RFC 6438).
    let [label, label2] = outer.source_port.bytes;
    ctx.store_at(
        0,
        &OuterHeaders6 {
            outer: Headers {
                // The kernel writes the link addresses when it has resolved the next hop.
                destination_mac: Mac::default(),
                source_mac: Mac::default(),
                ethertype: Be16::new(ethertype::IPV6),
                ip: Ipv6 {
                    version_class_label: [0x60 | class >> 4, class << 4, label, label2],
                    payload_length: length,
                    next_header: protocol::UDP,
                    hop_limit: TTL,
                    source: way.source.bytes,
                    destination: way.destination.bytes,
                },
            },
            source_port: outer.source_port,
            destination_port: outer.destination_port,
            udp_length: length,
            // None: see `store_outer`.
            udp_checksum: Be16::ZERO,
        },
    )?;
    let [_, a, b, c] = outer.vni.to_be_bytes();
    let inner_headers = InnerHeaders {
        vxlan: [VXLAN_FLAGS, 0, 0, 0, a, b, c, 0],
        destination_mac: outer.inner_destination_mac,
        source_mac: Mac { bytes: INNER_SOURCE_MAC },
        ethertype: Be16::new(I::ETHERTYPE),
        ip: *inner,
    };
    ctx.store_at(size_of::<OuterHeaders6>() as u32, &inner_headers)
}

/// Removes the outer headers of a packet of family `I`, `length` bytes. The Ethernet header in
/// front stays, with the outer addresses and the outer EtherType.
///
/// # Errors
/// [`Refused`] when the kernel does not let the frame shrink. Before Linux 6.3 it refuses if the
/// inner family is not the outer one.
#[inline(always)]
pub fn decapsulate<I: Ip>(ctx: &TcContext, length: u32) -> Result<(), Refused> {
    let changes_family = I::FAMILY == FAMILY_IPV6 && length == OUTER_LENGTH;
    let family = if changes_family { BPF_F_ADJ_ROOM_DECAP_L3_IPV6 } else { 0 };
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO | family;
    helpers::adjust_room(ctx, -(length as i32), BPF_ADJ_ROOM_MAC, flags.into()).map_err(|_| Refused)
}

/// Returns the network identifier of the VXLAN header at an offset, or `None` if its flags are not
/// VXLAN's.
///
/// # Errors
/// [`Drop::Truncated`].
#[inline(always)]
pub fn vni_of(ctx: &TcContext, offset: u32) -> Result<Option<u32>, Drop> {
    let header: [u8; 8] = ctx.load_at(offset)?;
    Ok((header[0] == VXLAN_FLAGS).then(|| u32::from_be_bytes([0, header[4], header[5], header[6]])))
}

/// The parts of a packet's outer header that the VXLAN device passes on.
pub struct TunnelKey {
    /// The sender.
    pub remote: Addr,
    /// Network identifier, host order.
    pub vni: u32,
}

/// `-EPROTO`: the packet has a tunnel key of IPv6, but one of IPv4 was asked for.
const OTHER_FAMILY: i64 = -71;

/// Returns the tunnel key of a packet, or `None` if it has none.
#[inline(never)]
pub fn get_tunnel_key(ctx: &TcContext) -> Option<TunnelKey> {
    // SAFETY: all fields are integers or unions of them.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: the context is valid, and the size is the key's.
    match unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &raw mut key, size, 0) } {
        0 => {
            // SAFETY: without a flag the helper has filled the IPv4 members.
            let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 };
            return Some(TunnelKey { remote: Addr::from_v4(remote.to_be_bytes()), vni: key.tunnel_id });
        }
        OTHER_FAMILY => {}
        _ => return None,
    }
    // SAFETY: the same, and with this flag the helper fills the IPv6 members, in network order.
    unsafe {
        if bpf_skb_get_tunnel_key(ctx.skb.skb, &raw mut key, size, BPF_F_TUNINFO_IPV6.into()) != 0 {
            return None;
        }
        let remote = Addr::from_words(key.__bindgen_anon_1.remote_ipv6);
        Some(TunnelKey { remote, vni: key.tunnel_id })
    }
}

/// The tunnel's ends, of one family.
pub struct TunnelEnds<'a> {
    /// This node's address.
    pub source: &'a Addr,
    /// The other node's.
    pub destination: &'a Addr,
    /// Whether they are IPv6 addresses.
    pub are_ipv6: bool,
    /// Whether the other end takes only packets with the outer UDP checksum, as a VXLAN device does
    /// in IPv6 unless it is told otherwise (RFC 6936).
    pub need_checksum: bool,
}

/// Tells the VXLAN device where to send a packet. `label`: the flow label of an IPv6 tunnel (RFC
/// 6438), at most 20 bits.
///
/// # Errors
/// [`Drop::RewriteFailed`].
#[inline(never)]
pub fn set_tunnel_key(
    ctx: &TcContext,
    ends: &TunnelEnds<'_>,
    vni: u32,
    class: u8,
    label: u16,
) -> Result<(), Drop> {
    // SAFETY: all fields are integers or unions of them.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = vni;
    key.tunnel_tos = class;
    key.tunnel_ttl = TTL;
    let mut flags = if ends.need_checksum { 0 } else { BPF_F_ZERO_CSUM_TX };
    if ends.are_ipv6 {
        flags |= BPF_F_TUNINFO_IPV6;
        key.tunnel_label = label.into();
        key.__bindgen_anon_1.remote_ipv6 = ends.destination.words();
        key.__bindgen_anon_3.local_ipv6 = ends.source.words();
    } else {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(ends.destination.v4());
        key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(ends.source.v4());
    }
    // SAFETY: the context is valid, and the size is the key's.
    let code = unsafe {
        bpf_skb_set_tunnel_key(ctx.skb.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags.into())
    };
    if code == 0 { Ok(()) } else { Err(Drop::RewriteFailed) }
}

#[repr(C)]
struct OuterHeaders<F> {
    outer: Headers,
    source_port: Be16,
    destination_port: Be16,
    udp_length: Be16,
    udp_checksum: Be16,
    vxlan: [u8; 8],
    inner_destination_mac: Mac,
    inner_source_mac: Mac,
    inner_ethertype: Be16,
    inner: F,
}

const _: () = assert!(size_of::<OuterHeaders<FixedPart>>() == 76);

#[repr(C)]
struct OuterHeaders6 {
    outer: Headers<Ipv6>,
    source_port: Be16,
    destination_port: Be16,
    udp_length: Be16,
    udp_checksum: Be16,
}

const _: () = assert!(size_of::<OuterHeaders6>() == 62);

/// The VXLAN header, and the beginning of the inner frame.
#[repr(C)]
struct InnerHeaders<F> {
    vxlan: [u8; 8],
    destination_mac: Mac,
    source_mac: Mac,
    ethertype: Be16,
    ip: F,
}
