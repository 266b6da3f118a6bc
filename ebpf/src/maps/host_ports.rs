//! hostPorts: `FRONTENDS`.

use podwire_common::abi::{Backend, Frontend};
use podwire_common::addr::{Addr, Be16};

use super::FRONTENDS;

/// Returns the backend of an address and port. Its hostIP is this address, or `any`, the one that
/// stands for all addresses of the family. The function does not check whether the address is this
/// node's own: see [`is_own_address`](super::is_own_address).
#[inline(always)]
pub fn backend(address: &Addr, any: &Addr, port: Be16, protocol: u8) -> Option<&'static Backend> {
    let mut frontend = Frontend { address: *address, port, protocol, clients: 0 };
    // SAFETY: a map element; see `endpoint`.
    if let Some(backend) = unsafe { FRONTENDS.get(frontend) } {
        return Some(backend);
    }
    frontend.address = *any;
    // SAFETY: a map element; see `endpoint`.
    unsafe { FRONTENDS.get(frontend) }
}
