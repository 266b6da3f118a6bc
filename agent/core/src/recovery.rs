//! Endpoints that have lost their files: what the maps and the devices still show of them. Pure.
//!
//! Their pods still run, so no other pod may get their addresses. Their attachments are unknown.
//! But the name of a device is derived from its attachment, so DEL and ADD find these endpoints by
//! that name ([`Model::endpoint_of`](crate::model::Model::endpoint_of)).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::num::NonZeroU16;

use podwire_common::abi::{self, Backend, Frontend};
use podwire_common::addr::Addr;
use podwire_common::flow::protocol;

use crate::host::{Device, Host, is_pods_device};
use crate::model::{Attachment, Bandwidth, Endpoint, PortMapping, Transport};
use crate::slice::Tables;

/// Returns the endpoints in the maps that are not in `known` and that still have the device that
/// the maps name.
pub fn recovered(tables: &Tables, host: &Host, known: &BTreeSet<IpAddr>) -> Vec<Endpoint> {
    let lost = tables.endpoints.iter().filter_map(|(address, entry)| {
        let address = IpAddr::from(*address);
        let device = host.devices.get(&entry.ifindex)?;
        let is_lost =
            !known.contains(&address) && is_pods_device(&device.name) && device.mac == Some(entry.host_mac);
        if is_lost { endpoint(address, entry, device, tables) } else { None }
    });
    lost.collect()
}

fn endpoint(address: IpAddr, entry: &abi::Endpoint, device: &Device, tables: &Tables) -> Option<Endpoint> {
    let of_pod = tables.frontends.iter().filter(|(_, backend)| backend.address == Addr::from(address));
    Some(Endpoint {
        // An empty interface name marks the endpoint as recovered: no container has an interface
        // without a name.
        attachment: Attachment { container_id: device.name.clone(), interface: String::new() },
        netns: String::new(),
        host_interface: device.name.clone(),
        ifindex: entry.ifindex,
        id: entry.id,
        pod_mac: entry.pod_mac,
        host_mac: entry.host_mac,
        address,
        gateway: entry.gateway.into(),
        mtu: device.mtu,
        port_mappings: of_pod.filter_map(|(frontend, backend)| port_mapping(frontend, backend)).collect(),
        pod: None,
        network: None,
        bandwidth: Bandwidth::default(),
    })
}

fn port_mapping(frontend: &Frontend, backend: &Backend) -> Option<PortMapping> {
    Some(PortMapping {
        host_address: Some(frontend.address)
            .filter(|address| *address != Addr::UNSPECIFIED)
            .map(IpAddr::from),
        host_port: NonZeroU16::new(frontend.port.get())?,
        container_port: NonZeroU16::new(backend.port.get())?,
        protocol: match frontend.protocol {
            protocol::TCP => Transport::Tcp,
            protocol::UDP => Transport::Udp,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::{endpoint_entry, frontends};
    use crate::host::DeviceKind;
    use podwire_common::addr::Mac;

    fn lost() -> Endpoint {
        let port = |number| NonZeroU16::new(number).unwrap();
        let mapping = |host_address, protocol| PortMapping {
            host_address,
            host_port: port(9088),
            container_port: port(8080),
            protocol,
        };
        let device = "pw0123456789ab";
        Endpoint {
            attachment: Attachment { container_id: device.into(), interface: String::new() },
            netns: String::new(),
            host_interface: device.into(),
            ifindex: 7,
            port_mappings: vec![
                mapping(None, Transport::Tcp),
                mapping(Some(IpAddr::from([10, 200, 0, 1])), Transport::Udp),
            ],
            pod: None,
            ..Endpoint::example()
        }
    }

    fn check(device: &Device, known: &[IpAddr]) -> Vec<Endpoint> {
        let lost = lost();
        let mut tables = Tables::default();
        let entry = abi::Endpoint { mtu: u16::MAX.into(), ..endpoint_entry(&lost) };
        tables.endpoints.insert(lost.address.into(), entry);
        tables.frontends.extend(frontends(&lost));
        let mut host = Host::default();
        host.devices.insert(device.index, device.clone());
        recovered(&tables, &host, &known.iter().copied().collect())
    }

    #[test]
    fn what_maps_and_devices_tell_is_the_endpoint_but_for_its_names() {
        let device = Device {
            index: 7,
            name: "pw0123456789ab".into(),
            mtu: 1450,
            mac: Some(lost().host_mac),
            up: true,
            loopback: false,
            kind: DeviceKind::Veth,
            link_header: crate::host::LinkHeader::Ethernet,
            port_of: None,
        };
        assert_eq!(check(&device, &[]), [lost()]);
        assert_eq!(check(&device, &[lost().address]), [], "it is known");
        assert_eq!(check(&Device { index: 8, ..device.clone() }, &[]), [], "its device is gone");
        let other = Mac { bytes: [2; 6] };
        assert_eq!(check(&Device { mac: Some(other), ..device.clone() }, &[]), [], "another device");
        assert_eq!(check(&Device { name: "eth0".into(), ..device }, &[]), [], "not a pod's device");
    }
}
