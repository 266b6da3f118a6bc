//! First packets of flows, and flows that outside clients began: `BEGINNINGS`, `INBOUND_FLOWS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::abi::{Beginning, Flow, InboundFlow};

use super::clock::{now, refresh};
use super::{BEGINNINGS, INBOUND_FLOWS};

/// Notes that this CPU is about to hand a flow's first packet to the host stack.
#[inline(always)]
pub fn note_beginning(beginning: &Beginning) {
    if let Some(noted) = BEGINNINGS.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; programs of one CPU do not interrupt each other at these
        // hooks.
        unsafe { *noted = *beginning };
    }
}

/// Returns what this CPU noted last, if it is about this packet.
#[inline(always)]
pub fn noted_beginning(flow: &Flow, imprint: u32) -> Option<&'static Beginning> {
    // SAFETY: this CPU's own element; see `note_beginning`.
    let noted = BEGINNINGS.get_ptr_mut(0).map(|noted| unsafe { &*noted });
    noted.filter(|noted| noted.imprint == imprint && noted.flow == *flow)
}

/// Returns whether an outside client began a flow through the pod's own address. The flow must have
/// been seen within the last `idle` nanoseconds. Marks it as seen now.
#[inline(always)]
pub fn is_inbound_flow(flow: &Flow, idle: u64) -> bool {
    let Some(entry) = INBOUND_FLOWS.get_ptr_mut(flow) else {
        return false;
    };
    // SAFETY: a map element; see `endpoint`.
    unsafe {
        if now().wrapping_sub((*entry).last_seen) > idle {
            return false;
        }
        refresh(&raw mut (*entry).last_seen);
    }
    true
}

/// Records a pod's flow as one that an outside client began. If the map is full, the kernel evicts
/// the least recently used entry.
#[inline(always)]
pub fn record_inbound_flow(flow: &Flow) {
    if let Some(entry) = INBOUND_FLOWS.get_ptr_mut(flow) {
        // SAFETY: a map element; see `endpoint`.
        unsafe { refresh(&raw mut (*entry).last_seen) };
        return;
    }
    let _ = INBOUND_FLOWS.insert(flow, InboundFlow { last_seen: now() }, BPF_ANY.into());
}
