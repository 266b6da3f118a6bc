//! Conversions between the protocol and the model. Each has its own types, so that the protocol can
//! change without the model.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_cni::protocol;
use podwire_common::names::GATEWAY6;
use podwire_core::model::{
    Attachment, Bandwidth, Endpoint, Limit, PodAddress, PodName, PortMapping, Transport, format_mac,
};

/// Converts the container ID and the interface name of an attachment.
pub fn attachment(wire: &protocol::Attachment) -> Attachment {
    Attachment { container_id: wire.container_id.clone(), interface: wire.interface.clone() }
}

/// Converts a pod's bandwidth limits.
pub fn bandwidth(wire: protocol::Bandwidth) -> Bandwidth {
    let limit = |wire: protocol::Limit| Limit { rate: wire.rate, burst: wire.burst };
    Bandwidth { ingress: wire.ingress.map(limit), egress: wire.egress.map(limit) }
}

/// Converts a pod's hostPorts.
pub fn port_mappings(wire: &[protocol::PortMapping]) -> Vec<PortMapping> {
    let mapping = |wire: &protocol::PortMapping| PortMapping {
        host_address: wire.host_address,
        host_port: wire.host_port,
        container_port: wire.container_port,
        protocol: match wire.protocol {
            protocol::Transport::Tcp => Transport::Tcp,
            protocol::Transport::Udp => Transport::Udp,
        },
    };
    wire.iter().map(mapping).collect()
}

/// Converts a pod's name.
pub fn pod_name(wire: &protocol::PodName) -> PodName {
    PodName { namespace: wire.namespace.clone(), name: wire.name.clone() }
}

/// Returns the pod's next hop. In IPv6 it is link-local, as a router's is (RFC 4861 section 4.2):
/// the same for every pod, whatever the podCIDR.
fn gateway(of_family: &PodAddress) -> IpAddr {
    match of_family.gateway {
        IpAddr::V4(gateway) => gateway.into(),
        IpAddr::V6(_) => IpAddr::from(GATEWAY6),
    }
}

/// Returns what the plugin configures in the pod.
pub fn added(endpoint: &Endpoint) -> protocol::Added {
    protocol::Added {
        addresses: endpoint.addresses().map(IpNet::from).collect(),
        gateways: endpoint.pod_addresses.iter().map(gateway).collect(),
        mtu: endpoint.mtu,
        pod_mac: format_mac(endpoint.pod_mac),
        host_mac: format_mac(endpoint.host_mac),
        host_interface: endpoint.host_interface.clone(),
    }
}
