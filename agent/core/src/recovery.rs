//! Endpoints that have lost their files: what the maps and the devices still show of them. Pure.
//!
//! Their pods still run, so no other pod may get their addresses. Their attachments are unknown.
//! But the name of a device is derived from its attachment, so DEL and ADD find these endpoints by
//! that name ([`Model::endpoint_of`](crate::model::Model::endpoint_of)).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use podwire_common::abi::{self, Backend, Frontend};
use podwire_common::addr::Addr;
use podwire_common::flow::protocol;

use crate::host::{Device, Host, is_pods_device};
use crate::model::{Attachment, Bandwidth, Endpoint, PodAddress, PortMapping, Transport};
use crate::slice::Tables;

/// Returns the endpoints in the maps that are not in `known` and that still have the device that
/// the maps name.
pub fn recovered(tables: &Tables, host: &Host, known: &BTreeSet<IpAddr>) -> Vec<Endpoint> {
    let mut lost: BTreeMap<u32, Endpoint> = BTreeMap::new();
    for (address, entry) in &tables.endpoints {
        let address = IpAddr::from(*address);
        let Some(device) = host.devices.get(&entry.ifindex) else { continue };
        let is_lost =
            !known.contains(&address) && is_pods_device(&device.name) && device.mac == Some(entry.host_mac);
        if is_lost {
            let endpoint = lost.entry(entry.ifindex).or_insert_with(|| endpoint(entry, device));
            endpoint.pod_addresses.push(PodAddress { address, gateway: entry.gateway.into() });
            endpoint.port_mappings.extend(port_mappings(address, tables));
        }
    }
    lost.values_mut().for_each(join_families);
    lost.into_values().collect()
}

/// Joins the hostPorts that lead to every address of the pod from all of the node's addresses: they
/// were asked for as one, without an address.
fn join_families(endpoint: &mut Endpoint) {
    let of_any = |mapping: &PortMapping| PortMapping { host_address: None, ..*mapping };
    let is_wide =
        |mapping: &&PortMapping| mapping.host_address.is_some_and(|address| address.is_unspecified());
    let wide: Vec<_> = endpoint.port_mappings.iter().filter(is_wide).map(of_any).collect();
    let families = endpoint.pod_addresses.len();
    let is_whole = |mapping: &PortMapping| wide.iter().filter(|wide| *wide == mapping).count() == families;
    for mapping in endpoint.port_mappings.iter_mut().filter(|mapping| is_wide(&&**mapping)) {
        let joined = of_any(mapping);
        if is_whole(&joined) {
            *mapping = joined;
        }
    }
    endpoint.port_mappings.sort_unstable();
    endpoint.port_mappings.dedup();
}

/// Returns the endpoint of an entry, without its addresses and hostPorts.
fn endpoint(entry: &abi::Endpoint, device: &Device) -> Endpoint {
    Endpoint {
        // An empty interface name marks the endpoint as recovered: no container has an interface
        // without a name.
        attachment: Attachment { container_id: device.name.clone(), interface: String::new() },
        netns: String::new(),
        host_interface: device.name.clone(),
        ifindex: entry.ifindex,
        id: entry.id,
        pod_mac: entry.pod_mac,
        host_mac: entry.host_mac,
        pod_addresses: Vec::new(),
        mtu: device.mtu,
        port_mappings: Vec::new(),
        pod: None,
        network: None,
        bandwidth: Bandwidth::default(),
    }
}

fn port_mappings(address: IpAddr, tables: &Tables) -> impl Iterator<Item = PortMapping> {
    let of_pod = tables.frontends.iter().filter(move |(_, backend)| backend.address == Addr::from(address));
    of_pod.filter_map(|(frontend, backend)| port_mapping(frontend, backend))
}

fn port_mapping(frontend: &Frontend, backend: &Backend) -> Option<PortMapping> {
    Some(PortMapping {
        host_address: Some(frontend.address.into()),
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
                mapping(Some(IpAddr::from([0, 0, 0, 0])), Transport::Udp),
                mapping(Some(IpAddr::from([10, 200, 0, 1])), Transport::Udp),
            ],
            pod_addresses: [("10.244.1.2", "10.244.1.1"), ("fd00:10:244:1::2", "fd00:10:244:1::1")]
                .map(|(address, gateway)| PodAddress {
                    address: address.parse().unwrap(),
                    gateway: gateway.parse().unwrap(),
                })
                .into(),
            pod: None,
            ..Endpoint::example()
        }
    }

    fn check(device: &Device, known: &[IpAddr]) -> Vec<Endpoint> {
        let lost = lost();
        let mut tables = Tables::default();
        for of_family in &lost.pod_addresses {
            let entry = abi::Endpoint { mtu: u16::MAX.into(), ..endpoint_entry(&lost, of_family.gateway) };
            tables.endpoints.insert(of_family.address.into(), entry);
        }
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
        assert_eq!(check(&device, &lost().addresses().collect::<Vec<_>>()), [], "it is known");
        assert_eq!(check(&Device { index: 8, ..device.clone() }, &[]), [], "its device is gone");
        let other = Mac { bytes: [2; 6] };
        assert_eq!(check(&Device { mac: Some(other), ..device.clone() }, &[]), [], "another device");
        assert_eq!(check(&Device { name: "eth0".into(), ..device }, &[]), [], "not a pod's device");
    }
}
