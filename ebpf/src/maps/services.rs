//! Services and their backends: `SERVICES`, `BACKENDS`, `SERVING`, `SOURCE_RANGES`.

use podwire_common::abi::{
    Backend, BackendKey, CLIENTS_INSIDE, Frontend, MAX_SOURCE_RANGES, SERVICE_HAS_SOURCE_RANGES, Service,
    ServingKey,
};
use podwire_common::addr::{Addr, Be16};

use super::clock::random;
use super::config::node_ports;
use super::nodes::has_node_ports;
use super::{BACKENDS, SERVICES, SERVING, SOURCE_RANGES};

/// Returns the service that answers at an address and port, or at a NodePort of this node.
///
/// `any`: the address that stands for all addresses of the family. `clients`: `CLIENTS_*`.
#[inline(always)]
pub fn service(
    address: &Addr,
    any: &Addr,
    port: Be16,
    protocol: u8,
    clients: u8,
) -> Option<&'static Service> {
    let mut frontend = Frontend { address: *address, port, protocol, clients };
    // SAFETY: a map element; see `endpoint`.
    let exact = unsafe { SERVICES.get(frontend) };
    let (first, last) = node_ports();
    if exact.is_some() || !(first..=last).contains(&port.get()) || !has_node_ports(address) {
        return exact;
    }
    frontend.address = *any;
    // SAFETY: a map element; see `endpoint`.
    unsafe { SERVICES.get(frontend) }
}

/// Returns the entry of an address for the ports that its service does not have.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn other_ports(address: &Addr) -> Option<&'static Service> {
    let key = Frontend { address: *address, port: Be16::ZERO, protocol: 0, clients: CLIENTS_INSIDE };
    // SAFETY: a map element; see `endpoint`.
    unsafe { SERVICES.get(key) }
}

/// Returns a random backend of a service. `None`: the agent has just removed the list, because the
/// service has another one.
#[inline(always)]
pub(super) fn random_backend_of(service: &Service) -> Option<&'static Backend> {
    chosen_backend_of(service, random())
}

/// Does the same as [`random_backend_of`], but `number` chooses the backend.
#[inline(always)]
pub fn chosen_backend_of(service: &Service, number: u32) -> Option<&'static Backend> {
    // Without backends it finds nothing; the verifier refuses a division by zero.
    let index = number % service.backends.max(1);
    let key = BackendKey { list: service.list, index, reserved: 0 };
    // SAFETY: a map element; see `endpoint`.
    unsafe { BACKENDS.get(key) }
}

/// Returns whether a client may begin a flow to a service.
// Not inlined: the key would take stack in the caller.
#[inline(never)]
pub fn admits(service: &Service, client: &Addr) -> bool {
    if service.flags & SERVICE_HAS_SOURCE_RANGES == 0 {
        return true;
    }
    let mut key = BackendKey { list: service.list, index: 0, reserved: 0 };
    while key.index < MAX_SOURCE_RANGES {
        // SAFETY: a map element; see `endpoint`.
        match unsafe { SOURCE_RANGES.get(key) } {
            Some(range) if range.has(client) => return true,
            Some(_) => key.index += 1,
            None => break,
        }
    }
    false
}

/// Returns whether UDP flows of a service to a backend go on.
#[inline(always)]
pub fn is_serving(service: &Service, address: &Addr, port: Be16) -> bool {
    let key = ServingKey { service: service.id, address: *address, port, reserved: [0; 6] };
    // SAFETY: a map element; see `endpoint`.
    unsafe { SERVING.get(key) }.is_some()
}
