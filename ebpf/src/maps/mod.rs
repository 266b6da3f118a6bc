//! All maps and their typed lookups. The module also has configuration, time and random numbers,
//! because they come from outside the packet too. No other module touches a map. Each concept has a
//! file; all maps are declared here.
#![expect(unsafe_code, reason = "map values are shared with other CPUs and with user space")]

mod affinity;
mod beginnings;
mod clock;
mod config;
mod counters;
mod endpoints;
mod epochs;
mod events;
mod flows;
mod fragments;
mod host_ports;
mod jumps;
mod moments;
mod nodes;
mod redirected_sockets;
mod services;
mod shares;
mod stack_flows;
mod translations;

#[cfg(feature = "count-helpers")]
use aya_ebpf::btf_maps::Array;
use aya_ebpf::btf_maps::{PerCpuArray, ProgramArray, RingBuf};
#[cfg(feature = "count-helpers")]
use podwire_common::helper::{MOMENTS, Moment};
use podwire_common::{
    abi::KnownFlow,
    addr::Addr,
    event::{Budget, Event, Kind, Packet, RING_BYTES},
    names::programs::Jump,
    reason::DROP_SLOTS,
};

use crate::helpers;

pub use affinity::{backend_for, listed_backend};
pub use beginnings::{is_inbound_flow, note_beginning, noted_beginning, record_inbound_flow};
pub use clock::{is_fresh, jiffies, now, random};
pub use config::{
    asks_each_connection, checks_link_addresses, has_service_networks, has_services, is_direct, netns_cookie,
    node_ports, skb_layout, snat_ports, vni, vxlan_ifindex, vxlan_port,
};
pub use counters::{count_drop, count_path, count_traffic};
pub use endpoints::{endpoint, may_send, set_stack_only};
pub use epochs::{forget_flows_of, generation};
pub use events::{
    begun_event, is_captured, is_listened_to, is_noted, listening, may_answer, new_event, new_packet,
    take_from_budget, write_event, write_packet, write_verdict,
};
pub use flows::{
    Known, forget_flow, forget_known, forget_reverse, is_still, is_still_in_place, known_flow, learn_flow,
    new_flow,
};
pub use fragments::{fragment_ports, remember_fragment};
pub use host_ports::backend;
pub use jumps::jump;
pub use nodes::{
    is_not_masqueraded, is_own_address, is_tunnel_peer, link, link6, network, node, note_refused, vtep,
};
pub use redirected_sockets::{
    forget_closed_socket, forget_redirected_socket, keep_backend_of_socket, kept_backend_of_socket,
    redirected_socket, remember_redirected_socket,
};
pub use services::{admits, chosen_backend_of, is_serving, other_ports, service};
pub use shares::{give_back, take_share};
pub use stack_flows::{is_stack_flow, record_stack_flow};
pub use translations::{TranslationEntry, add_translation, remove_translation, translation};

podwire_common::tables!(helpers::tables);

helpers::maps! {
    // The place where a CPU assembles a flow before the flow is in `FLOWS` or `FLOWS6`: the
    // stack has no room for it. Each load of the programs has its own maps, so they have no row in
    // `tables!`.
    static NEW_FLOW: PerCpuArray<KnownFlow, 1> = PerCpuArray::new();
    static NEW_FLOW6: PerCpuArray<KnownFlow<Addr>, 1> = PerCpuArray::new();
    // Targets of jumps, by `Jump`. Each load of the programs has its own map: the loader fills it
    // before it attaches one of these programs.
    static JUMPS: ProgramArray<{ Jump::ALL.len() }> = ProgramArray::new();
    // What user space is told of single packets. Each load of the programs has its own ring, so a
    // release may change the record.
    static EVENTS: RingBuf<Event, RING_BYTES> = RingBuf::new();
    static EVENT_BUDGETS: PerCpuArray<Budget, DROP_SLOTS> = PerCpuArray::new();
    static ANSWER_BUDGET: PerCpuArray<Budget, 1> = PerCpuArray::new();
    static VERDICTS_LOST: PerCpuArray<u64, { Kind::ALL.len() + 1 }> = PerCpuArray::new();
    // The place where a CPU assembles an event: it is too large for the stack.
    static NEW_EVENT: PerCpuArray<Event, 1> = PerCpuArray::new();
    static NEW_PACKET: PerCpuArray<Packet, 1> = PerCpuArray::new();
}

// The writes that a test chooses for each moment of learning: see `moment`.
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
