//! Pods of this node: `ENDPOINTS`, `EGRESS_GUARDS`.

use core::ptr::{read_volatile, write_volatile};

use podwire_common::abi::{ENDPOINT_STACK_ONLY, Endpoint};
use podwire_common::addr::Addr;
use podwire_common::epoch;

use super::clock::now;
use super::epochs::forget_flows_of;
use super::{EGRESS_GUARDS, ENDPOINTS};

/// Returns the pod of this node that has an address.
#[inline(always)]
pub fn endpoint(address: &Addr) -> Option<&'static Endpoint> {
    // SAFETY: the memory stays an element of this map while the program runs. The kernel may reuse
    // an element as soon as user space removes it. One packet then sees another entry's value, as
    // if the packet had come a moment later.
    unsafe { ENDPOINTS.get(address) }
}

/// Returns whether the pod behind a link may send `bytes` bytes of frame now. If so, it accounts
/// for them.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn may_send(link: u32, bytes: u32) -> bool {
    let Some(guard) = EGRESS_GUARDS.get_ptr_mut(link) else {
        return true;
    };
    let now = now();
    // SAFETY: a map element; see `endpoint`. `cost` and `credit` do not change.
    let (paid, cost, credit) =
        unsafe { (read_volatile(&raw const (*guard).paid), (*guard).cost, (*guard).credit) };
    if paid > now.wrapping_add(credit) {
        return false;
    }
    // Unused time expires: the pod can never have more than `credit`.
    let paid = paid.max(now) + u64::from(bytes).wrapping_mul(cost) / 1000;
    // SAFETY: an aligned word of a map element; see `endpoint`. If two CPUs write within the same
    // nanoseconds, one of the two packets is not accounted for.
    unsafe { write_volatile(&raw mut (*guard).paid, paid) };
    true
}

/// Marks an endpoint: all its flows go through the host stack from now on.
#[inline(always)]
pub fn set_stack_only(address: &Addr) {
    if let Some(endpoint) = ENDPOINTS.get_ptr_mut(address) {
        // SAFETY: a map element; see `endpoint`. Several CPUs write the same value.
        let id = unsafe {
            (*endpoint).flags |= ENDPOINT_STACK_ONLY;
            (*endpoint).id
        };
        forget_flows_of(epoch::endpoint(id));
    }
}
