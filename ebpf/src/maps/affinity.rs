//! Session affinity: the backends that clients of services keep: `AFFINITY`, `POSITIONS`.

use aya_ebpf::bindings::BPF_ANY;
use podwire_common::{
    abi::{Affinity, AffinityKey, Backend, PositionKey, Service},
    addr::{Addr, Be16},
    nat,
};

use super::clock::now;
use super::services::{chosen_backend_of, random_backend_of};
use super::{AFFINITY, POSITIONS};

/// Returns the backend for a client's new connection to a service. `None`: the agent has just
/// removed the list, because the service has another one.
// Not inlined: the keys would take stack in every caller.
#[inline(never)]
pub fn backend_for(service: &Service, client: &Addr) -> Option<&'static Backend> {
    if service.affinity == 0 {
        return random_backend_of(service);
    }
    if let Some(backend) = kept_backend(service, client) {
        return Some(backend);
    }
    let backend = random_backend_of(service)?;
    keep_backend(service, client, backend);
    Some(backend)
}

/// Returns the backend that a client keeps, and notes that another connection begins. `None`: the
/// last one is too long ago, or new connections no longer go to that backend.
#[inline(never)]
fn kept_backend(service: &Service, client: &Addr) -> Option<&'static Backend> {
    let entry = AFFINITY.get_ptr_mut(AffinityKey { service: service.id, client: *client })?;
    // SAFETY: a map element; see `endpoint`. If the kernel has reused this LRU element for another
    // client, the backend is that client's. It counts only if it is in this service's list.
    let (last_begun, address, port) = unsafe { ((*entry).last_begun, (*entry).address, (*entry).port) };
    let now = now();
    if !nat::keeps_backend(last_begun, now, service.affinity) {
        return None;
    }
    let backend = listed_backend(service, &address, port)?;
    // SAFETY: a map element; see `endpoint`. A word is written whole. In a reused element it renews
    // the time of another client.
    unsafe { (*entry).last_begun = now };
    Some(backend)
}

/// Remembers the backend of a client. If the entry is lost, the next connection chooses again.
#[inline(never)]
fn keep_backend(service: &Service, client: &Addr, backend: &Backend) {
    let key = AffinityKey { service: service.id, client: *client };
    let kept = Affinity { last_begun: now(), address: backend.address, port: backend.port, reserved: [0; 6] };
    let _ = AFFINITY.insert(key, kept, BPF_ANY.into());
}

/// Returns the backend with this address and port, if it is in the list of a service with session
/// affinity.
// Not inlined: see `backend_for`.
#[inline(never)]
pub fn listed_backend(service: &Service, address: &Addr, port: Be16) -> Option<&'static Backend> {
    let key = PositionKey { list: service.list, address: *address, port, reserved: [0; 6] };
    // SAFETY: a map element; see `endpoint`.
    let position = unsafe { POSITIONS.get(key) }?;
    chosen_backend_of(service, *position)
}
