//! Nodes, their links and the networks around them: `NODES`, `VTEPS`, `TUNNEL_PEERS`, `UPLINKS`, `NON_MASQUERADE`.

use aya_ebpf::btf_maps::lpm_trie::Key;
use podwire_common::abi::{NODE_ADDRESS, NODE_LOCAL, Node, Uplink, Vtep};
use podwire_common::addr::Addr;

use super::{NODES, NON_MASQUERADE, TUNNEL_PEERS, UPLINKS, VTEPS};

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

/// The addresses of a link.
#[inline(always)]
pub fn uplink(ifindex: u32) -> Option<&'static Uplink> {
    // SAFETY: as for endpoints.
    unsafe { UPLINKS.get(ifindex) }
}

/// Whether pods keep their own addresses towards a destination.
#[inline(never)]
pub fn is_not_masqueraded(address: &Addr) -> bool {
    NON_MASQUERADE.get(&Key::new(128, (*address).into())).is_some()
}

/// Whether an address is one of this node itself.
#[inline(always)]
pub fn is_own_address(address: &Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    node(address).is_some_and(|node| node.flags & OWN == OWN)
}
