//! Flows that must go through the host stack: `STACK_FLOWS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::{
    abi::{Flow, Holder, StackFlow},
    addr::Addr,
    flow::FlowAddr,
};

use super::clock::{now, refresh};
use super::flows::{forget_flow, forget_reverse};
use super::shares::{give_back, take_share};
use super::{E2BIG, STACK_FLOWS};

/// Returns whether a flow must go through the host stack, and marks it as seen now.
#[inline(always)]
pub fn is_stack_flow(flow: &Flow) -> bool {
    let Some(entry) = STACK_FLOWS.get_ptr_mut(flow) else {
        return false;
    };
    // SAFETY: a map element; see `endpoint`. The timestamp is one aligned word, and every writer
    // writes a recent time.
    unsafe { refresh(&raw mut (*entry).last_seen) };
    true
}

/// Records a flow of a pod of this node that must go through the host stack.
///
/// # Errors
/// [`E2BIG`] when the pod has its share of the map. Otherwise the helper's error code: the map is
/// full, or memory is short.
#[inline(always)]
pub fn record_stack_flow<A: FlowAddr>(flow: &Flow, local_pod: &Addr) -> Result<(), i32> {
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
    // Forget only after the insert. A program that learns the flow at this moment first adds it and
    // then looks for this entry (`check_again`). So one of the two removes the known flow.
    forget_flow::<A>(flow);
    forget_reverse::<A>(flow);
    Ok(())
}

// Not inlined: the key would take stack in every caller.
#[inline(never)]
fn take_share_of_stack_flows(local_pod: &Addr) -> bool {
    take_share(&Holder::of_stack_flows(*local_pod), 1)
}

#[inline(never)]
fn give_back_stack_flow(local_pod: &Addr) {
    give_back(&Holder::of_stack_flows(*local_pod), 1);
}
