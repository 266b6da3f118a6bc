//! Lookups by the addresses of a packet.
//!
//! A map's key has to be on the stack, aligned. In IPv6 there is little stack left beside the
//! packet, so the key has its place in a function that returns before the next stage.

use podwire_common::{
    abi::{Endpoint, FAMILY_IPV4, Node},
    addr::Addr,
};

use crate::{
    maps,
    packet::{Headers, Ip},
};

/// Returns the pod of this node that has the packet's source. `source`: that address.
#[inline(always)]
pub fn sending_pod<I: Ip>(headers: &Headers<I>, source: &Addr) -> Option<&'static Endpoint> {
    if I::FAMILY == FAMILY_IPV4 { maps::endpoint(source) } else { sending_pod_apart(headers) }
}

/// Returns the pod of this node that has the packet's destination. `destination`: that address.
#[inline(always)]
pub fn receiving_pod<I: Ip>(headers: &Headers<I>, destination: &Addr) -> Option<&'static Endpoint> {
    if I::FAMILY == FAMILY_IPV4 { maps::endpoint(destination) } else { receiving_pod_apart(headers) }
}

/// Returns the node that owns the packet's source. `source`: that address.
#[inline(always)]
pub fn sending_node<I: Ip>(headers: &Headers<I>, source: &Addr) -> Option<&'static Node> {
    if I::FAMILY == FAMILY_IPV4 { maps::node(source) } else { sending_node_apart(headers) }
}

/// Returns the node that owns the packet's destination. `destination`: that address.
#[inline(always)]
pub fn receiving_node<I: Ip>(headers: &Headers<I>, destination: &Addr) -> Option<&'static Node> {
    if I::FAMILY == FAMILY_IPV4 { maps::node(destination) } else { receiving_node_apart(headers) }
}

#[inline(never)]
fn sending_pod_apart<I: Ip>(headers: &Headers<I>) -> Option<&'static Endpoint> {
    maps::endpoint(&headers.source_address())
}

#[inline(never)]
fn receiving_pod_apart<I: Ip>(headers: &Headers<I>) -> Option<&'static Endpoint> {
    maps::endpoint(&headers.destination_address())
}

#[inline(never)]
fn sending_node_apart<I: Ip>(headers: &Headers<I>) -> Option<&'static Node> {
    maps::node(&headers.source_address())
}

#[inline(never)]
fn receiving_node_apart<I: Ip>(headers: &Headers<I>) -> Option<&'static Node> {
    maps::node(&headers.destination_address())
}
