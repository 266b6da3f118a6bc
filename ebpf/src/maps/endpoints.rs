//! Pods of this node: `ENDPOINTS`, `EGRESS_GUARDS`.

use core::ptr::{read_volatile, write_volatile};

use podwire_common::abi::{ENDPOINT_STACK_ONLY, Endpoint};
use podwire_common::addr::Addr;
use podwire_common::epoch;

use super::clock::now;
use super::epochs::forget_flows_of;
use super::{EGRESS_GUARDS, ENDPOINTS};

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
