//! hostPorts: which pod answers at a port of this node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_common::abi;
use podwire_common::addr::Be16;
use podwire_common::flow::protocol;

use super::Scope;
use crate::model::{Endpoint, Model, PortMapping, Transport};
use crate::slice::Slice;

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    slice.tables.frontends.extend(scope.endpoints(model).into_iter().flat_map(frontends));
    slice
}

/// Returns an endpoint's entries in `FRONTENDS`: no entry for host addresses of the other family.
pub fn frontends(endpoint: &Endpoint) -> impl Iterator<Item = (abi::Frontend, abi::Backend)> {
    endpoint.port_mappings.iter().flat_map(|mapping| {
        endpoint.addresses().filter_map(move |address| {
            let port = Be16::new(mapping.container_port.get());
            let backend = abi::Backend { address: address.into(), port, reserved: [0; 2] };
            Some((frontend(mapping, address)?, backend))
        })
    })
}

/// Returns a hostPort's key in `FRONTENDS` for a pod's address. `None`: the hostPort has an address
/// of the other family, so it does not lead to this one.
pub fn frontend(mapping: &PortMapping, address: IpAddr) -> Option<abi::Frontend> {
    let every = match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let host_address = mapping.host_address.unwrap_or(every);
    (host_address.is_ipv4() == address.is_ipv4()).then(|| abi::Frontend {
        address: host_address.into(),
        port: Be16::new(mapping.host_port.get()),
        protocol: match mapping.protocol {
            Transport::Tcp => protocol::TCP,
            Transport::Udp => protocol::UDP,
        },
        clients: 0,
    })
}
