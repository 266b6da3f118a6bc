//! Ports of fragmented datagrams: `FRAGMENTS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{FragmentKey, FragmentPorts};

use super::FRAGMENTS;

/// Remembers the ports of a datagram for its later fragments. A loss costs those fragments, nothing else.
#[inline(always)]
pub fn remember_fragment(key: &FragmentKey, ports: FragmentPorts) {
    let _ = FRAGMENTS.insert(key, ports, BPF_ANY.into());
}

/// The ports of the datagram that a later fragment belongs to.
#[inline(always)]
pub fn fragment_ports(key: &FragmentKey) -> Option<FragmentPorts> {
    // SAFETY: as for endpoints; an LRU element that is reused meanwhile gives another datagram's ports, which loses
    // this fragment as an eviction would.
    unsafe { FRAGMENTS.get(key) }.copied()
}
