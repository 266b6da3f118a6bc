//! Nodes, their links and the networks around them: `NODES`, `VTEPS`, `TUNNEL_PEERS`, `LINKS`,
//! `LINKS6`, `NETWORKS`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::btf_maps::lpm_trie::Key;
use podwire_common::abi::{
    Link, Link6, NETWORK_KEEPS_ADDRESS, NODE_ADDRESS, NODE_LOCAL, NODE_WITHOUT_NODE_PORTS, Node, Vtep,
};
use podwire_common::addr::Addr;

use super::{LINKS, LINKS6, NETWORKS, NODES, TUNNEL_PEERS, VTEPS};

/// Returns the node that owns an address: by its podCIDR, or as one of the node's own addresses.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn node(address: &Addr) -> Option<&'static Node> {
    NODES.get(&Key::new(128, (*address).into()))
}

/// Returns the VXLAN device of a node with [`NODE_VTEP`](podwire_common::abi::NODE_VTEP), by the
/// node's tunnel endpoint.
#[inline(always)]
pub fn vtep(address: &Addr) -> Option<&'static Vtep> {
    // SAFETY: a map element; see `endpoint`.
    unsafe { VTEPS.get(address) }
}

/// Returns whether an underlay address is a node's.
#[inline(always)]
pub fn is_tunnel_peer(address: &Addr) -> bool {
    TUNNEL_PEERS.get_ptr(address).is_some()
}

/// Returns the kind, addresses and MTU of a link of the host.
#[inline(always)]
pub fn link(ifindex: u32) -> Option<&'static Link> {
    // SAFETY: a map element; see `endpoint`.
    unsafe { LINKS.get(ifindex) }
}

/// Returns the IPv6 addresses of a link of the host, if it has any.
#[inline(always)]
pub fn link6(ifindex: u32) -> Option<&'static Link6> {
    // SAFETY: a map element; see `endpoint`.
    unsafe { LINKS6.get(ifindex) }
}

/// Counts a packet that the programs dropped because its route leads out by this link.
#[inline(always)]
pub fn note_refused(ifindex: u32) {
    if let Some(link) = LINKS.get_ptr_mut(ifindex) {
        // SAFETY: an aligned word of a map element; see `endpoint`. If two CPUs count at once, one
        // count may be lost.
        unsafe {
            let refused = &raw mut (*link).refused;
            write_volatile(refused, read_volatile(refused).wrapping_add(1));
        }
    }
}

/// Returns the `NETWORK_*` flags of the outside network that contains an address; 0 for most.
// Not inlined: the key would take stack in every caller.
#[inline(never)]
pub fn network(address: &Addr) -> u32 {
    NETWORKS.get(&Key::new(128, (*address).into())).map_or(0, |flags| *flags)
}

/// Returns whether pods keep their own addresses towards a destination.
#[inline(always)]
pub fn is_not_masqueraded(address: &Addr) -> bool {
    network(address) & NETWORK_KEEPS_ADDRESS != 0
}

/// Returns whether an address is one of this node's own.
#[inline(always)]
pub fn is_own_address(address: &Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    node(address).is_some_and(|node| node.flags & OWN == OWN)
}

/// Returns whether an address is one of this node's own, and has NodePorts.
#[inline(always)]
pub fn has_node_ports(address: &Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    node(address).is_some_and(|node| node.flags & (OWN | NODE_WITHOUT_NODE_PORTS) == OWN)
}
