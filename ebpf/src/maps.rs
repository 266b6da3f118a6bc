//! Every map and its typed lookups; configuration, time and random numbers, which come from outside the packet as well.
//! Nothing else touches a map.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

use core::{
    ptr::{read_volatile, write_volatile},
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
};
use podwire_common::abi::{
    ASK_EACH_CONNECTION, ASK_EACH_DESTINATION, Backend, Beginning, Config, Count, ENDPOINT_STACK_ONLY,
    Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, Guard, Holder, InboundFlow,
    KNOWN_FLOW_JIFFIES, KnownFlow, MODE_DIRECT, MODE_VXLAN, NODE_ADDRESS, NODE_LOCAL, Node, RedirectedSocket,
    SkbLayout, SocketAddress, StackFlow, TABLE_STACK_FLOWS, TABLES, Translation, Uplink, Vtep,
};
use podwire_common::addr::{Addr, Be16, LpmAddr};
use podwire_common::epoch::{
    self, EPOCH_SLOTS, FLOW_SLOTS, GENERATION_AGENT, GENERATION_PROGRAMS, GENERATIONS,
};
#[cfg(feature = "count-helpers")]
use podwire_common::helper::{MOMENTS, Moment};
use podwire_common::reason::{DROP_SLOTS, Drop, PATH_SLOTS, Path};

use crate::helpers::{self, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};

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

// SAFETY: the loader writes it by this name before the program runs; nothing else bears the name.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    mode: MODE_VXLAN,
    vni: 0,
    vxlan_ifindex: 0,
    vxlan_port: Be16::ZERO,
    snat_port_first: 0,
    snat_port_last: 0,
    node_port_first: 0,
    node_port_last: 0,
    ask: ASK_EACH_DESTINATION,
    netns_cookie: 0,
};

// SAFETY: as above.
#[unsafe(no_mangle)]
static SKB_LAYOUT: SkbLayout =
    SkbLayout { window: 0, ip_summed: 0, encapsulation: 0, csum_start: 0, csum_offset: 0, mac_header: 0 };

/// Entries are refreshed no more often than this, so that CPUs that share a flow do not fight over a cache line.
const REFRESH_NS: u64 = 1_000_000_000;
/// `-EEXIST`, as map helpers return it.
pub const EEXIST: i32 = -17;
/// `-E2BIG`, as map helpers return it when a map is full.
pub const E2BIG: i32 = -7;
/// `-EBUSY`: two CPUs at the same bucket, on kernels before 6.15.
pub const EBUSY: i32 = -16;

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

/// First and last of Kubernetes' NodePorts; host order.
#[inline(always)]
pub fn node_ports() -> (u16, u16) {
    // SAFETY: as above.
    unsafe {
        (read_volatile(&raw const CONFIG.node_port_first), read_volatile(&raw const CONFIG.node_port_last))
    }
}

/// Whether the host's rules see the first packet of each of a pod's connections to the world.
#[inline(always)]
pub fn asks_each_connection() -> bool {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const CONFIG.ask) == ASK_EACH_CONNECTION }
}

/// The network namespace of this node.
#[inline(always)]
pub fn netns_cookie() -> u64 {
    // SAFETY: as above.
    unsafe { read_volatile(&raw const CONFIG.netns_cookie) }
}

/// Where the running kernel's socket buffers have what no context shows.
#[inline(always)]
pub fn skb_layout() -> SkbLayout {
    // Field by field: the verifier has to know each number.
    // SAFETY: as above.
    unsafe {
        SkbLayout {
            window: read_volatile(&raw const SKB_LAYOUT.window),
            ip_summed: read_volatile(&raw const SKB_LAYOUT.ip_summed),
            encapsulation: read_volatile(&raw const SKB_LAYOUT.encapsulation),
            csum_start: read_volatile(&raw const SKB_LAYOUT.csum_start),
            csum_offset: read_volatile(&raw const SKB_LAYOUT.csum_offset),
            mac_header: read_volatile(&raw const SKB_LAYOUT.mac_header),
        }
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

/// Whether a pod that sends by a link may send so many bytes of frame now. What may is accounted for.
// A function of its own: the key would take its place on the stack of the caller.
#[inline(never)]
pub fn may_send(link: u32, bytes: u32) -> bool {
    let Some(guard) = EGRESS_GUARDS.get_ptr_mut(link) else {
        return true;
    };
    let now = now();
    // SAFETY: as for endpoints; cost and credit stay as they are.
    let (paid, cost, credit) =
        unsafe { (read_volatile(&raw const (*guard).paid), (*guard).cost, (*guard).credit) };
    if paid > now.wrapping_add(credit) {
        return false;
    }
    // What nobody has sent meanwhile is nobody's.
    let paid = paid.max(now) + u64::from(bytes).wrapping_mul(cost) / 1000;
    // SAFETY: as above; an aligned word. Of two CPUs that are here within the same nanoseconds, one's packet is not accounted for.
    unsafe { write_volatile(&raw mut (*guard).paid, paid) };
    true
}

/// Marks an endpoint as one all of whose flows go through the host stack.
#[inline(always)]
pub fn set_stack_only(address: &Addr) {
    if let Some(endpoint) = ENDPOINTS.get_ptr_mut(address) {
        // SAFETY: as above; several CPUs write the same value.
        let id = unsafe {
            (*endpoint).flags |= ENDPOINT_STACK_ONLY;
            (*endpoint).id
        };
        forget_flows_of(epoch::endpoint(id));
    }
}

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

/// Records a flow of a pod of this node that must go through the host stack.
///
/// # Errors
/// [`E2BIG`] when the pod has its share of the map; the helper's: the map is full, or memory is short.
#[inline(always)]
pub fn record_stack_flow(flow: &Flow, local_pod: &Addr) -> Result<(), i32> {
    if is_stack_flow(flow) {
        return Ok(());
    }
    if !take_share_of_stack_flows(local_pod) {
        return Err(E2BIG);
    }
    if let Err(error) = STACK_FLOWS.insert(flow, StackFlow { last_seen: now() }, BPF_ANY.into()) {
        give_back_stack_flow(local_pod);
        return Err(error);
    }
    // After it: who has not seen the one finds the other gone, and looks again after having added it.
    forget_flow(flow);
    forget_reverse(flow);
    Ok(())
}

// Functions of their own: the key would take its place on the stack of every caller.
#[inline(never)]
fn take_share_of_stack_flows(local_pod: &Addr) -> bool {
    take_share(&holder_of_stack_flow(local_pod), 1)
}

#[inline(never)]
fn give_back_stack_flow(local_pod: &Addr) {
    give_back(&holder_of_stack_flow(local_pod), 1);
}

#[inline(always)]
fn holder_of_stack_flow(local_pod: &Addr) -> Holder {
    Holder { address: *local_pod, port: Be16::ZERO, protocol: 0, table: TABLE_STACK_FLOWS }
}

/// Takes entries of a table for a holder; `false`: the holder has its share already.
///
/// Nobody may hold more entries than are free: the dynamic threshold of Choudhury and Hahne (IEEE/ACM
/// Transactions on Networking 6, 1998). One flooding holder gets half of the table, two get a third
/// each, and what is always left is enough for the new flows of everybody else.
///
/// Two CPUs that count at the same moment may lose one of the counts. The agent counts every entry when
/// it ages the tables out, and writes both maps anew.
#[inline(always)]
pub fn take_share(holder: &Holder, entries: u32) -> bool {
    let Some(room) = ROOM.get_ptr_mut(holder.table.into()) else {
        return true;
    };
    // SAFETY: as for endpoints; an aligned word.
    let free = unsafe { read_volatile(room) };
    match HOLDERS.get_ptr_mut(holder) {
        Some(held) => {
            // SAFETY: as above.
            let held_before = unsafe { read_volatile(held) };
            if held_before >= free {
                return false;
            }
            // SAFETY: as above.
            unsafe { write_volatile(held, held_before.wrapping_add(entries)) };
        }
        // Where there is no room for a holder its entries are not counted until the agent counts them.
        None => drop(HOLDERS.insert(holder, entries, BPF_NOEXIST.into())),
    }
    // SAFETY: as above.
    unsafe { write_volatile(room, free.saturating_sub(entries)) };
    true
}

/// Gives entries of a table back that [`take_share`] took.
#[inline(always)]
pub fn give_back(holder: &Holder, entries: u32) {
    if let Some(room) = ROOM.get_ptr_mut(holder.table.into()) {
        // SAFETY: as above.
        unsafe { write_volatile(room, read_volatile(room).wrapping_add(entries)) };
    }
    if let Some(held) = HOLDERS.get_ptr_mut(holder) {
        // SAFETY: as above.
        unsafe { write_volatile(held, read_volatile(held).saturating_sub(entries)) };
    }
}

/// As [`forget_flow`], of the flow's reverse.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn forget_reverse(flow: &Flow) {
    let _ = FLOWS.remove(flow.reversed().key());
}

/// What is known of a flow, if that still counts.
#[inline(always)]
pub fn known_flow(key: &FlowKey) -> Option<&'static KnownFlow> {
    // SAFETY: as for endpoints; an element that is used again meanwhile is told by its key.
    let known = unsafe { FLOWS.get(key) }?;
    (is_fresh(known.asked) && known.epochs == sum_of_epochs(&known.slots)).then_some(known)
}

/// Whether what was found out at a time, in jiffies, still counts.
#[inline(always)]
pub fn is_fresh(asked: u32) -> bool {
    jiffies().wrapping_sub(asked) < KNOWN_FLOW_JIFFIES
}

/// Whether an entry is this flow's at this moment: asked after everything that is taken from it has been read.
#[inline(always)]
pub fn is_still(known: &KnownFlow, key: &FlowKey) -> bool {
    compiler_fence(Ordering::SeqCst);
    let (now, key) = ((&raw const known.key).cast::<u64>(), (&raw const *key).cast::<u64>());
    // SAFETY: both are keys, two aligned words each. Volatile: others write the entry meanwhile.
    unsafe { read_volatile(now) == *key && read_volatile(now.add(1)) == *key.add(1) }
}

/// Where this CPU puts together what is to be learnt of a flow.
#[inline(always)]
pub fn new_flow() -> Option<&'static mut KnownFlow> {
    // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these hooks.
    NEW_FLOW.get_ptr_mut(0).map(|known| unsafe { &mut *known })
}

/// Learns a flow that was judged since a [`generation`], unless anything has changed since then. A loss costs time,
/// nothing else.
///
/// The agent writes a table, then `GENERATION`, then `EPOCHS`. The program reads in the other order. A verdict that is
/// older than the table's change was judged before `GENERATION` changed: if the second reading does not see that change,
/// the epochs change after they were read here, and the entry ends with them. Processors that reorder reads make this
/// nearly sure, not quite; what is learnt ends by itself after [`KNOWN_FLOW_JIFFIES`].
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn learn_flow(known: &mut KnownFlow, since: u32) {
    moment(0);
    known.epochs = sum_of_epochs(&known.slots);
    compiler_fence(Ordering::SeqCst);
    moment(1);
    if generation() != since {
        return;
    }
    moment(2);
    let _ = FLOWS.insert(&known.key, &*known, BPF_ANY.into());
    moment(3);
}

#[inline(always)]
fn sum_of_epochs(slots: &[u16; FLOW_SLOTS]) -> u32 {
    let Some(epochs) = EPOCHS.get_ptr_mut(0) else {
        return 0;
    };
    let [a, b, c, d] = *slots;
    // SAFETY: `at` stays within the element, whose words are aligned.
    let epoch = |slot| unsafe { read_volatile(at(epochs, slot)) };
    epoch(a).wrapping_add(epoch(b)).wrapping_add(epoch(c)).wrapping_add(epoch(d))
}

/// Where the number of a slot is.
#[inline(always)]
fn at(epochs: *mut [u32; EPOCH_SLOTS], slot: u16) -> *mut u32 {
    const { assert!(EPOCH_SLOTS.is_power_of_two()) };
    // For the verifier: what a map holds may be any number.
    epochs.cast::<u32>().wrapping_add(usize::from(slot) & (EPOCH_SLOTS - 1))
}

/// A moment of learning: a test may have told what somebody else writes just then.
#[cfg(not(feature = "count-helpers"))]
#[inline(always)]
const fn moment(_: u32) {}

// Its operations are not counted: the released programs do nothing here.
#[cfg(feature = "count-helpers")]
#[inline(never)]
fn moment(index: u32) {
    // SAFETY: only tests write it, and not while a program runs.
    let Some(writes) = LEARNING.0.get_ptr_mut(index).map(|writes| unsafe { &*writes }) else {
        return;
    };
    if let Some(generation) = GENERATION.0.get_ptr_mut(0) {
        // SAFETY: an aligned word; nobody else writes it meanwhile.
        unsafe {
            (*generation)[GENERATION_AGENT] = (*generation)[GENERATION_AGENT].wrapping_add(writes.generation)
        };
    }
    if let Some(epochs) = EPOCHS.0.get_ptr_mut(0) {
        let epoch = at(epochs, writes.slot as u16);
        // SAFETY: as above.
        unsafe { *epoch = (*epoch).wrapping_add(writes.epoch) };
    }
    let flow = &writes.flow;
    let _ = match writes.event {
        Moment::STACK_FLOW => STACK_FLOWS.0.insert(flow, StackFlow { last_seen: 0 }, BPF_ANY.into()),
        Moment::TRANSLATION_GONE => TRANSLATIONS.0.remove(flow),
        _ => return,
    };
    let _ = FLOWS.0.remove(flow.key());
}

/// Forgets what was found out about a flow.
// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
pub fn forget_flow(flow: &Flow) {
    let _ = FLOWS.remove(flow.key());
}

/// As [`forget_flow`], by what was remembered: its key is on the stack already.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn forget_known(known: &KnownFlow) {
    let _ = FLOWS.remove(&known.key);
}

/// A number that is another one as soon as anything has changed that flows are judged by. Read it before judging what
/// may be learnt.
#[inline(always)]
pub fn generation() -> u32 {
    GENERATION.get_ptr_mut(0).map_or(0, |numbers| {
        let numbers = numbers.cast::<u32>();
        // SAFETY: aligned words of one element.
        let of = |writer| unsafe { read_volatile(numbers.add(writer)) };
        of(GENERATION_AGENT).wrapping_add(of(GENERATION_PROGRAMS))
    })
}

/// Forgets what is known of the flows that hold a slot of [`epoch`]. The caller has written the table before.
#[inline(never)]
pub fn forget_flows_of(slot: u16) {
    // In the agent's order: see `learn_flow`.
    if let Some(numbers) = GENERATION.get_ptr_mut(0) {
        change(numbers.cast::<u32>().wrapping_add(GENERATION_PROGRAMS));
    }
    compiler_fence(Ordering::SeqCst);
    if let Some(epochs) = EPOCHS.get_ptr_mut(0) {
        change(at(epochs, slot));
    }
}

/// Makes a number another one. By chance and not by one: two CPUs may write at the same time, and the one that comes
/// second must not bring an earlier number back.
#[inline(always)]
fn change(number: *mut u32) {
    // SAFETY: an aligned word of an array, which lives as long as the program.
    unsafe { write_volatile(number, read_volatile(number).wrapping_add(random() | 1)) };
}

/// The kernel's coarse clock, its lower half.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() as u32 }
}

/// Notes that this CPU is about to hand a flow's first packet to the host stack.
#[inline(always)]
pub fn note_beginning(beginning: &Beginning) {
    if let Some(noted) = BEGINNINGS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these hooks.
        unsafe { *noted = *beginning };
    }
}

/// Whether this is the packet that this CPU noted last.
#[inline(always)]
pub fn is_noted_beginning(flow: &Flow, imprint: u32) -> bool {
    // SAFETY: as above.
    BEGINNINGS
        .get_ptr_mut(0)
        .is_some_and(|noted| unsafe { (*noted).imprint == imprint && (*noted).flow == *flow })
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

/// Whether a flow was begun by somebody outside who reached the pod by its own address, no longer than `idle` nanoseconds
/// ago; seen now.
#[inline(always)]
pub fn is_inbound_flow(flow: &Flow, idle: u64) -> bool {
    let Some(entry) = INBOUND_FLOWS.get_ptr_mut(flow) else {
        return false;
    };
    // SAFETY: as for endpoints.
    unsafe {
        if now().wrapping_sub((*entry).last_seen) > idle {
            return false;
        }
        refresh(&raw mut (*entry).last_seen);
    }
    true
}

/// Records a pod's flow as one that somebody outside began. What does not fit is made room for.
#[inline(always)]
pub fn record_inbound_flow(flow: &Flow) {
    if let Some(entry) = INBOUND_FLOWS.get_ptr_mut(flow) {
        // SAFETY: as for endpoints.
        unsafe { refresh(&raw mut (*entry).last_seen) };
        return;
    }
    let _ = INBOUND_FLOWS.insert(flow, InboundFlow { last_seen: now() }, BPF_ANY.into());
}

/// Whether pods keep their own addresses towards a destination.
#[inline(never)]
pub fn is_not_masqueraded(address: &Addr) -> bool {
    NON_MASQUERADE.get(&Key::new(128, (*address).into())).is_some()
}

/// Who answers at an address and port: by a hostIP that is this address, or one that stands for all. Whether the address is this
/// node's is another question ([`is_own_address`]).
#[inline(always)]
pub fn backend(address: &Addr, port: Be16, protocol: u8) -> Option<Backend> {
    let mut frontend = Frontend { address: *address, port, protocol, reserved: 0 };
    // SAFETY: as for endpoints.
    if let Some(backend) = unsafe { FRONTENDS.get(frontend) } {
        return Some(*backend);
    }
    frontend.address = Addr::UNSPECIFIED;
    // SAFETY: as for endpoints.
    unsafe { FRONTENDS.get(frontend) }.copied()
}

/// Whether an address is one of this node itself.
#[inline(always)]
pub fn is_own_address(address: &Addr) -> bool {
    const OWN: u32 = NODE_LOCAL | NODE_ADDRESS;
    node(address).is_some_and(|node| node.flags & OWN == OWN)
}

/// Where a process believes that a socket sends which was pointed at a pod.
#[inline(always)]
pub fn redirected_socket(socket: &RedirectedSocket) -> Option<SocketAddress> {
    // SAFETY: as for endpoints; an element that is reused meanwhile misleads one answer, as an eviction would.
    unsafe { REDIRECTED_SOCKETS.get(socket) }.copied()
}

/// Remembers where a process believes that a socket sends.
///
/// # Errors
/// The helper's: memory is short.
#[inline(always)]
pub fn remember_redirected_socket(socket: &RedirectedSocket, address: &SocketAddress) -> Result<(), i32> {
    REDIRECTED_SOCKETS.insert(socket, address, BPF_ANY.into())
}

/// Forgets what a process believed that a socket sends to, if anything is remembered.
#[inline(always)]
pub fn forget_redirected_socket(socket: &RedirectedSocket) {
    // A lookup takes no lock, and nearly all find nothing.
    if redirected_socket(socket).is_some() {
        let _ = REDIRECTED_SOCKETS.remove(socket);
    }
}

/// One half of a translation, as it is in the map.
pub struct TranslationEntry(*mut Translation);

impl TranslationEntry {
    /// The half itself. What its fields say does not change while it is there, but for state and time.
    #[inline(always)]
    pub fn get(&self) -> &'static Translation {
        // SAFETY: as for endpoints.
        unsafe { &*self.0 }
    }

    /// Seen now, in this state: both halves.
    #[inline(always)]
    pub fn touch(&self, protocol: u8, state: u8) {
        let now = now();
        // SAFETY: as for endpoints.
        let (last_seen, known) = unsafe { ((*self.0).last_seen, (*self.0).state) };
        if known == state && now.wrapping_sub(last_seen) <= REFRESH_NS {
            return;
        }
        self.set(now, state);
        touch_other(self.get(), protocol, now, state);
    }

    /// Whether a packet of this half's direction has gone past the host stack before this one.
    #[inline(always)]
    pub fn mark_long(&self) -> bool {
        let was_long = self.get().is_long != 0;
        if !was_long {
            // SAFETY: as for endpoints; a byte is written whole.
            unsafe { (*self.0).is_long = 1 };
        }
        was_long
    }

    /// Whether the flow goes past the host stack from now on: both halves, and what was found out about them.
    #[inline(always)]
    pub fn set_past_stack(&self, flow: &Flow, past_stack: bool) {
        if (self.get().past_stack != 0) != past_stack {
            set_both_past_stack(self.0, flow, past_stack.into());
        }
    }

    /// The host's rules have been asked about this half's first packet.
    #[inline(always)]
    pub fn set_asked(&self) {
        // SAFETY: as for endpoints; a word is written whole.
        unsafe { (*self.0).asked = jiffies() };
    }

    #[inline(always)]
    fn set(&self, now: u64, state: u8) {
        // SAFETY: as for endpoints; each field is written whole.
        unsafe {
            (*self.0).last_seen = now;
            (*self.0).state = state;
        }
    }
}

#[inline(never)]
fn set_both_past_stack(half: *mut Translation, flow: &Flow, past_stack: u8) {
    // SAFETY: as for endpoints; a byte is written whole.
    unsafe { (*half).past_stack = past_stack };
    // SAFETY: as above.
    let other_flow = unsafe { &*half }.other_half(flow.protocol);
    if let Some(other) = translation(&other_flow) {
        // SAFETY: as above.
        unsafe { (*other.0).past_stack = past_stack };
    }
    forget_flow(flow);
    forget_flow(&other_flow);
}

// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
fn touch_other(half: &Translation, protocol: u8, now: u64, state: u8) {
    if let Some(other) = translation(&half.other_half(protocol)) {
        other.set(now, state);
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
    TRANSLATIONS.insert(flow, translation, BPF_NOEXIST.into())?;
    // No call of `forget_flow`: this is the deepest place, and before Linux 6.8 a call takes 32 bytes of stack at least.
    let _ = FLOWS.remove(flow.key());
    Ok(())
}

/// Removes one half of a translation.
#[inline(always)]
pub fn remove_translation(flow: &Flow) {
    let _ = TRANSLATIONS.remove(flow);
    forget_flow(flow);
}

/// Counts a dropped packet.
#[inline(always)]
pub fn count_drop(reason: Drop, bytes: u32) {
    add(DROPS.get_ptr_mut(reason as u32), bytes);
}

/// Counts a packet on its way.
#[inline(always)]
pub fn count_path(path: Path, bytes: u32) {
    count_traffic(path as u32, bytes);
}

/// As [`count_path`], by the path's number.
#[inline(always)]
pub fn count_traffic(path: u32, bytes: u32) {
    add(TRAFFIC.get_ptr_mut(path), bytes);
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
