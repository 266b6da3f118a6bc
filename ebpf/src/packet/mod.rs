//! This module works on bytes. It has the checked loads, and all stores, checksum fixes and
//! redirects of the programs. It has no maps and no policy.
#![expect(
    unsafe_code,
    reason = "kernel helpers and the fields of the context are reached through raw pointers"
)]

mod arp;
mod checksum;
mod checksum_left;
mod closed_socket;
mod headers;
mod icmp;
mod icmp6;
mod imprint;
mod ipv4;
mod ipv6;
mod link_header;
mod list;
mod parsed;
mod plain;
mod quote;
mod redirect;
mod reset;
mod rewrite;
mod skb;
mod socket;
mod socket_call;
mod tunnel;
mod xdp;

pub use arp::Arp;
pub use checksum_left::checksum_left;
pub use closed_socket::ClosedSocket;
pub use headers::{ETHERNET_LENGTH, Fragment, Headers, Ip, ethertype};
pub use icmp6::{ON_LINK_HOP_LIMIT, advertise_gateway};
pub use imprint::imprint;
pub use ipv4::{FixedPart, Ipv4};
pub use ipv6::Ipv6;
pub use link_header::add as add_link_header;
pub use list::is_list;
pub use parsed::{Faulty, Loaded, Parsed, Place};
pub use plain::{Plain, PlainIp};
pub use redirect::{Lookup, Way, leave, redirect, redirect_into_stack, redirect_peer, source_towards};
pub use reset::reset;
pub use rewrite::{decrement_ttl, fixed_part, forward, set_fixed_part, set_macs, store_in_parts, translate};
pub use skb::Skb;
pub use socket::{belongs_to_socket, has_socket};
pub use socket_call::{Ipv4Call, Ipv6Call, LOOPBACK6, SocketCall, is_loopback};
pub use tunnel::{
    OUTER_LENGTH, OUTER_LENGTH6, Outer, TunnelEnds, decapsulate, encapsulate, get_tunnel_key, set_tunnel_key,
    vni_of,
};
pub use xdp::{XdpHeaders, load as load_xdp};
