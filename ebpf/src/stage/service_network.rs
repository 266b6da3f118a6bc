//! The networks of services (`--service-networks`): addresses there belong to services, and to nobody
//! outside the cluster.

use podwire_common::{
    abi::{NETWORK_OF_SERVICES, SERVICE_REFUSES},
    addr::Addr,
    reason::Drop,
};

use crate::maps;

/// Refuses an address and port that no service has. The caller has looked for a service there. If
/// kube-proxy serves a port of the address, it also refuses the others.
///
/// # Errors
/// [`Drop::ServicePortUnknown`], [`Drop::ServiceAddressUnknown`].
#[inline(always)]
pub fn refuse_unknown(address: &Addr) -> Result<(), Drop> {
    if !maps::has_service_networks() || maps::network(address) & NETWORK_OF_SERVICES == 0 {
        return Ok(());
    }
    match maps::other_ports(address) {
        Some(service) if service.flags & SERVICE_REFUSES != 0 => Err(Drop::ServicePortUnknown),
        Some(_) => Ok(()),
        None => Err(Drop::ServiceAddressUnknown),
    }
}
