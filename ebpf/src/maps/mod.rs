//! Every map and its typed lookups; configuration, time and random numbers, which come from outside the packet as well.
//! Nothing else touches a map. One file a concept; all maps are declared here.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

mod beginnings;
mod clock;
mod config;
mod counters;
mod endpoints;
mod epochs;
mod flows;
mod fragments;
mod host_ports;
mod moments;
mod nodes;
mod shares;
mod stack_flows;
mod translations;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use podwire_common::abi::{
    Backend, Beginning, Count, Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, Guard, Holder,
    InboundFlow, KnownFlow, Node, RedirectedSocket, SocketAddress, StackFlow, TABLES, Translation, Uplink,
    Vtep,
};
use podwire_common::addr::{Addr, LpmAddr};
use podwire_common::epoch::{EPOCH_SLOTS, GENERATIONS};
#[cfg(feature = "count-helpers")]
use podwire_common::helper::{MOMENTS, Moment};
use podwire_common::reason::{DROP_SLOTS, PATH_SLOTS};

use crate::helpers;

pub use beginnings::{is_inbound_flow, is_noted_beginning, note_beginning, record_inbound_flow};
pub use clock::{is_fresh, jiffies, now, random};
pub use config::{
    asks_each_connection, is_direct, netns_cookie, node_ports, skb_layout, snat_ports, vni, vxlan_ifindex,
    vxlan_port,
};
pub use counters::{count_drop, count_path, count_traffic};
pub use endpoints::{endpoint, may_send, set_stack_only};
pub use epochs::{forget_flows_of, generation};
pub use flows::{
    forget_flow, forget_known, forget_reverse, is_still, is_still_in_place, known_flow, learn_flow, new_flow,
};
pub use fragments::{fragment_ports, remember_fragment};
pub use host_ports::{backend, forget_redirected_socket, redirected_socket, remember_redirected_socket};
pub use nodes::{is_not_masqueraded, is_own_address, is_tunnel_peer, node, uplink, vtep};
pub use shares::{give_back, take_share};
pub use stack_flows::{is_stack_flow, record_stack_flow};
pub use translations::{TranslationEntry, add_translation, remove_translation, translation};

// Sizes are the largest that the loader may set; it may ask for smaller or larger ones.
helpers::maps! {
    static ENDPOINTS: HashMap<Addr, Endpoint, 1024> = HashMap::new();
    static EGRESS_GUARDS: HashMap<u32, Guard, 1024> = HashMap::new();
    static NODES: LpmTrie<LpmAddr, Node, 16384> = LpmTrie::new();
    // Empty, unless a cluster is being moved.
    static VTEPS: HashMap<Addr, Vtep, 8192, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
    static TUNNEL_PEERS: HashMap<Addr, u32, 8192> = HashMap::new();
    // No LRU: an entry that left early would send a flow's replies past conntrack (invariant 1).
    static STACK_FLOWS: HashMap<Flow, StackFlow, 131072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
    static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, 8192> = LruHashMap::new();
    // No LRU: half of a pair that left alone would break the connection.
    static TRANSLATIONS: HashMap<Flow, Translation, 262144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
    // LRU: whoever reaches pods by their own addresses can fill it, and the next packet of a flow brings its entry back.
    static INBOUND_FLOWS: LruHashMap<Flow, InboundFlow, 16384> = LruHashMap::new();
    static NON_MASQUERADE: LpmTrie<LpmAddr, u32, 1024> = LpmTrie::new();
    static FRONTENDS: HashMap<Frontend, Backend, 4096> = HashMap::new();
    static REDIRECTED_SOCKETS: LruHashMap<RedirectedSocket, SocketAddress, 16384> = LruHashMap::new();
    // LRU: all of it can be found out again.
    static FLOWS: LruHashMap<FlowKey, KnownFlow, 65536> = LruHashMap::new();
    static GENERATION: Array<[u32; GENERATIONS], 1, { BPF_F_MMAPABLE as usize }> = Array::new();
    // A map and not the object's own data: it is pinned, so that it lives as long as `FLOWS`, which the programs of two
    // loads share while an agent replaces another. The kernel inlines a lookup in an array, so there is no helper call.
    // One element, since each lookup takes a key on the stack. The agent writes single numbers of both by mmap.
    static EPOCHS: Array<[u32; EPOCH_SLOTS], 1, { BPF_F_MMAPABLE as usize }> = Array::new();
    // Where a CPU puts a flow together before it is in `FLOWS`: the stack has no room for it. Of this load alone.
    static NEW_FLOW: PerCpuArray<KnownFlow, 1> = PerCpuArray::new();
    static BEGINNINGS: PerCpuArray<Beginning, 1> = PerCpuArray::new();
    // As many as there are pods and hostPorts, in both tables.
    static HOLDERS: HashMap<Holder, u32, 16384, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
    static ROOM: Array<u32, TABLES> = Array::new();
    static UPLINKS: HashMap<u32, Uplink, 64> = HashMap::new();
    static DROPS: PerCpuArray<Count, DROP_SLOTS> = PerCpuArray::new();
    static TRAFFIC: PerCpuArray<Count, PATH_SLOTS> = PerCpuArray::new();
}

// What tests have written while a flow is learnt: see `moment`.
#[cfg(feature = "count-helpers")]
helpers::maps! {
    static LEARNING: Array<Moment, MOMENTS> = Array::new();
}

/// `-EEXIST`, as map helpers return it.
pub const EEXIST: i32 = -17;

/// `-E2BIG`, as map helpers return it when a map is full.
pub const E2BIG: i32 = -7;

/// `-EBUSY`: two CPUs at the same bucket, on kernels before 6.15.
pub const EBUSY: i32 = -16;
