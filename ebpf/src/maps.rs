//! Every map and its typed lookups; configuration, time and random numbers, which come from outside the packet as well.
//! Nothing else touches a map.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

use core::{
    ptr::{read_volatile, write_volatile},
    sync::atomic::{Ordering, compiler_fence},
};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
};
use podwire_common::abi::{
    ASK_EACH_CONNECTION, ASK_EACH_DESTINATION, Backend, Beginning, Config, Count, ENDPOINT_STACK_ONLY,
    Endpoint, Flow, FlowKey, FragmentKey, FragmentPorts, Frontend, Holder, InboundFlow, KNOWN_FLOW_JIFFIES,
    KnownFlow, MODE_DIRECT, MODE_VXLAN, NODE_ADDRESS, NODE_LOCAL, Node, RedirectedSocket, SkbLayout,
    SocketAddress, StackFlow, TABLE_STACK_FLOWS, Translation, Uplink, Vtep,
};
use podwire_common::addr::{Addr, Be16};
use podwire_common::reason::{Drop, Path};

use crate::helpers::{self, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns};

podwire_common::tables!(helpers::tables);

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
        unsafe { (*endpoint).flags |= ENDPOINT_STACK_ONLY };
        forget_all_flows();
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

// A function of its own: the key would take its place on the stack of every caller.
#[inline(never)]
fn forget_reverse(flow: &Flow) {
    let _ = FLOWS.remove(flow.reversed().key());
}

/// What is known of a flow, if that still counts in this generation.
#[inline(always)]
pub fn known_flow(key: &FlowKey, generation: u32) -> Option<&'static KnownFlow> {
    // SAFETY: as for endpoints; an element that is used again meanwhile is told by its key.
    let known = unsafe { FLOWS.get(key) }?;
    (is_fresh(known.asked) && known.generation == generation).then_some(known)
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

/// Remembers what was found out about a flow. A loss costs time, nothing else.
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the key would take its place on the stack"
)]
#[inline(always)]
pub fn remember_flow(known: &KnownFlow) {
    let _ = FLOWS.insert(&known.key, known, BPF_ANY.into());
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

/// A number that is another one as soon as anything has changed that flows were judged by. To be read before the judging.
#[inline(always)]
pub fn generation() -> u32 {
    // SAFETY: an aligned word; the element is always there.
    GENERATION.get_ptr_mut(0).map_or(0, |generation| unsafe { read_volatile(generation) })
}

/// Forgets what was found out about any flow.
#[inline(always)]
pub fn forget_all_flows() {
    if let Some(generation) = GENERATION.get_ptr_mut(0) {
        // SAFETY: as above. Whoever adds at the same time makes it another number as well.
        unsafe { *generation = (*generation).wrapping_add(1) };
    }
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
