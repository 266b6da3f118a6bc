//! Every map and its typed lookups; configuration, time and random numbers, which come from outside the packet as well.
//! Nothing else touches a map.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
};
use podwire_common::abi::{
    Config, Count, ENDPOINT_STACK_ONLY, Endpoint, Flow, FragmentKey, FragmentPorts, MODE_DIRECT, MODE_VXLAN,
    Node, StackFlow, Translation, Uplink,
};
use podwire_common::addr::{Addr, Be16};
use podwire_common::reason::{DROP_SLOTS, Drop, PATH_SLOTS, Path};

// Sizes are the largest that the loader may set; it may ask for smaller or larger ones.
#[btf_map]
static ENDPOINTS: HashMap<Addr, Endpoint, 1024> = HashMap::new();
#[btf_map]
static NODES: LpmTrie<Addr, Node, 16384> = LpmTrie::new();
#[btf_map]
static TUNNEL_PEERS: HashMap<Addr, u32, 8192> = HashMap::new();
// No LRU: an entry that left early would send a flow's replies past conntrack (invariant 1).
#[btf_map]
static STACK_FLOWS: HashMap<Flow, StackFlow, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();
// No LRU: half of a pair that left alone would break the connection.
#[btf_map]
static TRANSLATIONS: HashMap<Flow, Translation, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static UPLINKS: HashMap<u32, Uplink, 64> = HashMap::new();
#[btf_map]
static DROPS: PerCpuArray<Count, DROP_SLOTS> = PerCpuArray::new();
#[btf_map]
static TRAFFIC: PerCpuArray<Count, PATH_SLOTS> = PerCpuArray::new();

// SAFETY: the loader writes it by this name before the program runs; nothing else bears the name.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    mode: MODE_VXLAN,
    vni: 0,
    vxlan_ifindex: 0,
    vxlan_port: Be16::ZERO,
    snat_port_first: 0,
    snat_port_last: 0,
    reserved: 0,
};

/// Entries are refreshed no more often than this, so that CPUs that share a flow do not fight over a cache line.
const REFRESH_NS: u64 = 1_000_000_000;
/// `-EEXIST`, as map helpers return it.
pub const EEXIST: i32 = -17;

/// Whether pods' packets travel between nodes as they are, and not inside VXLAN.
#[inline(always)]
pub fn is_direct() -> bool {
    // SAFETY: a static; volatile, because the loader's value is not the one that the compiler sees.
    unsafe { read_volatile(&raw const CONFIG.mode) == MODE_DIRECT }
}

/// VXLAN network identifier, host order.
#[inline(always)]
pub fn vni() -> u32 {
    // SAFETY: a static; volatile, because the loader's value is not the one that the compiler sees.
    unsafe { read_volatile(&raw const CONFIG.vni) }
}

/// The VXLAN device.
#[inline(always)]
pub fn vxlan_ifindex() -> u32 {
    // SAFETY: a static; volatile, because the loader's value is not the one that the compiler sees.
    unsafe { read_volatile(&raw const CONFIG.vxlan_ifindex) }
}

/// UDP port of the tunnel.
#[inline(always)]
pub fn vxlan_port() -> Be16 {
    // SAFETY: a static; volatile, because the loader's value is not the one that the compiler sees.
    unsafe { read_volatile(&raw const CONFIG.vxlan_port) }
}

/// First and last of the source ports that SNAT chooses from; host order.
#[inline(always)]
pub fn snat_ports() -> (u16, u16) {
    // SAFETY: as above.
    unsafe {
        (read_volatile(&raw const CONFIG.snat_port_first), read_volatile(&raw const CONFIG.snat_port_last))
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// A random number of the kernel's.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// The pod of this node that has an address.
#[inline(always)]
pub fn endpoint(address: &Addr) -> Option<&'static Endpoint> {
    // SAFETY: the memory stays an element of this map while the program runs. An element that user space removes meanwhile
    // may be used again at once: one packet then sees another entry's value, as one that came a moment later would.
    unsafe { ENDPOINTS.get(address) }
}

/// Marks an endpoint as one all of whose flows go through the host stack.
#[inline(always)]
pub fn set_stack_only(address: &Addr) {
    if let Some(endpoint) = ENDPOINTS.get_ptr_mut(address) {
        // SAFETY: as above; several CPUs write the same value.
        unsafe { (*endpoint).flags |= ENDPOINT_STACK_ONLY };
    }
}

/// The node that owns an address: by its podCIDR or as one of its own.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn node(address: &Addr) -> Option<&'static Node> {
    NODES.get(&Key::new(128, *address))
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

/// Whether a flow must go through the host stack; seen now.
#[inline(always)]
pub fn is_stack_flow(flow: &Flow) -> bool {
    let Some(entry) = STACK_FLOWS.get_ptr_mut(flow) else {
        return false;
    };
    // SAFETY: as for endpoints; the timestamp is a single aligned word and any writer's value is a recent time.
    unsafe { refresh(&raw mut (*entry).last_seen) };
    true
}

/// Records a flow that must go through the host stack.
///
/// # Errors
/// The helper's: the map is full, or memory is short.
#[inline(always)]
pub fn record_stack_flow(flow: &Flow) -> Result<(), i32> {
    if is_stack_flow(flow) {
        return Ok(());
    }
    STACK_FLOWS.insert(flow, StackFlow { last_seen: now() }, BPF_ANY.into())
}

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

/// One half of a translation, as it is in the map.
pub struct TranslationEntry(*mut Translation);

impl TranslationEntry {
    /// A copy.
    #[inline(always)]
    pub fn get(&self) -> Translation {
        // SAFETY: as for endpoints.
        unsafe { *self.0 }
    }

    /// Seen now, in this state.
    #[inline(always)]
    pub fn touch(&self, state: u8) {
        // SAFETY: as for endpoints; both fields are written whole.
        unsafe {
            if (*self.0).state != state {
                (*self.0).state = state;
            }
            refresh(&raw mut (*self.0).last_seen);
        }
    }
}

/// The translation of a flow.
#[inline(always)]
pub fn translation(flow: &Flow) -> Option<TranslationEntry> {
    TRANSLATIONS.get_ptr_mut(flow).map(TranslationEntry)
}

/// Adds one half of a translation if there is none.
///
/// # Errors
/// [`EEXIST`] when there is one; otherwise the map is full or memory is short.
#[inline(always)]
pub fn add_translation(flow: &Flow, translation: &Translation) -> Result<(), i32> {
    TRANSLATIONS.insert(flow, translation, BPF_NOEXIST.into())
}

/// Removes one half of a translation.
#[inline(always)]
pub fn remove_translation(flow: &Flow) {
    let _ = TRANSLATIONS.remove(flow);
}

/// Counts a dropped packet.
#[inline(always)]
pub fn count_drop(reason: Drop, bytes: u32) {
    add(DROPS.get_ptr_mut(reason as u32), bytes);
}

/// Counts a packet on its way.
#[inline(always)]
pub fn count_path(path: Path, bytes: u32) {
    add(TRAFFIC.get_ptr_mut(path as u32), bytes);
}

#[inline(always)]
fn add(count: Option<*mut Count>, bytes: u32) {
    if let Some(count) = count {
        // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these hooks.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += u64::from(bytes);
        }
    }
}

/// # Safety
/// `last_seen` points into a map element.
#[inline(always)]
unsafe fn refresh(last_seen: *mut u64) {
    let now = now();
    // SAFETY: by the contract.
    unsafe {
        if now.wrapping_sub(*last_seen) > REFRESH_NS {
            *last_seen = now;
        }
    }
}
