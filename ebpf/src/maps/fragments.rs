//! Ports of fragmented datagrams: `FRAGMENTS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{FragmentKey, FragmentPorts};

use super::FRAGMENTS;

/// Remembers the ports of a datagram for its later fragments. If the entry is lost, only those
/// fragments are lost.
#[inline(always)]
pub fn remember_fragment(key: &FragmentKey, ports: FragmentPorts) {
    let _ = FRAGMENTS.insert(key, ports, BPF_ANY.into());
}

/// Returns the ports of the datagram that a later fragment belongs to.
#[inline(always)]
pub fn fragment_ports(key: &FragmentKey) -> Option<FragmentPorts> {
    // SAFETY: a map element; see `endpoint`. A reused LRU element gives another datagram's ports,
    // so this fragment is lost, as after an eviction.
    unsafe { FRAGMENTS.get(key) }.copied()
}
