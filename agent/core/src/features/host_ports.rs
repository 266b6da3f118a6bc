//! hostPorts: which pod answers at a port of this node.

use podwire_common::abi;
use podwire_common::addr::{Addr, Be16};
use podwire_common::flow::protocol;

use super::Scope;
use crate::model::{Endpoint, Family, Model, PortMapping, Transport};
use crate::slice::Slice;

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    slice.tables.frontends.extend(scope.endpoints(model).into_iter().flat_map(frontends));
    slice
}

/// Returns an endpoint's entries in `FRONTENDS`: no entry for host addresses of the other family.
pub fn frontends(endpoint: &Endpoint) -> impl Iterator<Item = (abi::Frontend, abi::Backend)> {
    // The programs translate no IPv6 yet.
    let address = endpoint.address_of(Family::V4);
    address.into_iter().flat_map(|address| {
        let is_served = move |mapping: &&PortMapping| {
            mapping.host_address.is_none_or(|host_address| host_address.is_ipv4() == address.is_ipv4())
        };
        endpoint.port_mappings.iter().filter(is_served).map(move |mapping| {
            let port = Be16::new(mapping.container_port.get());
            (frontend(mapping), abi::Backend { address: address.into(), port, reserved: [0; 2] })
        })
    })
}

/// Returns a hostPort's key in `FRONTENDS`. All addresses of a family have the key of all addresses.
pub fn frontend(mapping: &PortMapping) -> abi::Frontend {
    let particular = mapping.host_address.filter(|address| !address.is_unspecified());
    abi::Frontend {
        address: particular.map_or(Addr::UNSPECIFIED, Addr::from),
        port: Be16::new(mapping.host_port.get()),
        protocol: match mapping.protocol {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        },
        reserved: 0,
    }
}
