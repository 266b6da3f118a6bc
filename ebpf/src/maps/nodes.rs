//! Nodes, their links and the networks around them: `NODES`, `VTEPS`, `TUNNEL_PEERS`, `LINKS`, `NETWORKS`.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::btf_maps::lpm_trie::Key;
use podwire_common::abi::{Link, NETWORK_KEEPS_ADDRESS, NODE_ADDRESS, NODE_LOCAL, Node, Vtep};
use podwire_common::addr::Addr;

use super::{LINKS, NETWORKS, NODES, TUNNEL_PEERS, VTEPS};

/// The node that owns an address: by its podCIDR or as one of its own.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn node(address: &Addr) -> Option<&'static Node> {
    NODES.get(&Key::new(128, (*address).into()))
}

/// The VXLAN device of a node with [`NODE_VTEP`](podwire_common::abi::NODE_VTEP), by its tunnel endpoint.
#[inline(always)]
pub fn vtep(address: &Addr) -> Option<&'static Vtep> {
    // SAFETY: as for endpoints.
    unsafe { VTEPS.get(address) }
}

/// Whether an underlay address is a node's.
#[inline(always)]
pub fn is_tunnel_peer(address: &Addr) -> bool {
    TUNNEL_PEERS.get_ptr(address).is_some()
}

/// What a link of the host is for.
#[inline(always)]
pub fn link(ifindex: u32) -> Option<&'static Link> {
    // SAFETY: as for endpoints.
    unsafe { LINKS.get(ifindex) }
}

/// Counts a packet that the programs dropped because the route leads by this link.
#[inline(always)]
pub fn note_refused(ifindex: u32) {
    if let Some(link) = LINKS.get_ptr_mut(ifindex) {
        // SAFETY: as for endpoints; an aligned word. Of two CPUs that count at once, one may be lost.
        unsafe {
            let refused = &raw mut (*link).refused;
            write_volatile(refused, read_volatile(refused).wrapping_add(1));
        }
    }
}

/// What is said of the network of the world that an address is in: `NETWORK_*`, 0 of most.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn network(address: &Addr) -> u32 {
    NETWORKS.get(&Key::new(128, (*address).into())).map_or(0, |flags| *flags)
}

/// Whether pods keep their own addresses towards a destination.
#[inline(always)]
pub fn is_not_masqueraded(address: &Addr) -> bool {
    network(address) & NETWORK_KEEPS_ADDRESS != 0
}

/// Whether an address is one of this node itself.
#[inline(always)]
pub fn is_own_address(address: &Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    node(address).is_some_and(|node| node.flags & OWN == OWN)
}
