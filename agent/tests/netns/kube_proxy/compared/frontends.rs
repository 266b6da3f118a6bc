//! The addresses and ports that clients ask: those of the cluster's services, and others like them.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use xtask::lab::{Lab, renumbered};

use super::super::table::Protocol;
use crate::neighbour::{OWN, beside};

/// The lists of the cluster: services and their endpoints.
const LISTS: &str = include_str!("../../../../../testdata/dual-stack/services.json");
/// A port that no service has.
const UNKNOWN_PORT: u16 = 9;
/// Addresses that no service has.
const UNKNOWN: [&str; 2] = ["10.96.99.99", "fd00:10:96::9999"];

#[derive(Clone, Debug)]
pub struct Frontend {
    /// The service's name; empty if no service has the address.
    pub service: String,
    pub kind: Kind,
    pub protocol: Protocol,
    pub at: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    /// A port that the service does not have.
    UnknownPort,
    /// An address in the networks of ClusterIPs that no service has.
    UnknownAddress,
    /// A NodePort of the first node.
    NodePort,
    /// A NodePort of the second node.
    NodePortThere,
    /// A NodePort at the first node's address on its second uplink.
    NodePortBeside,
    ExternalIp,
    Balancer,
}

impl Kind {
    pub fn is_of_cluster(self) -> bool {
        matches!(self, Self::ClusterIp | Self::UnknownPort | Self::UnknownAddress)
    }
}

/// Returns the objects of the lists, with the names and addresses of a lab.
pub fn lists() -> Vec<Value> {
    let text = renumbered(LISTS).replace("\"kn1\"", "\"node1\"").replace("\"kn2\"", "\"node2\"");
    let list: Value = serde_json::from_str(&text).unwrap();
    elements(&list["items"]).cloned().collect()
}

/// Returns all that clients ask in a lab.
pub fn frontends(lab: &Lab) -> Vec<Frontend> {
    let lists = lists();
    let services = lists.iter().filter(|object| object["kind"] == "Service");
    let unknown = UNKNOWN.iter().map(|address| Frontend {
        service: String::new(),
        kind: Kind::UnknownAddress,
        protocol: Protocol::Tcp,
        at: SocketAddr::new(address.parse().unwrap(), 80),
    });
    services.flat_map(|object| of_service(lab, object)).chain(unknown).collect()
}

fn of_service(lab: &Lab, object: &Value) -> Vec<Frontend> {
    let spec = &object["spec"];
    let cluster_ips = addresses(&spec["clusterIPs"]);
    let mut frontends = Vec::new();
    let mut add = |kind, protocol, address, port: u64| {
        let service = object["metadata"]["name"].as_str().unwrap().to_owned();
        let at = SocketAddr::new(address, port.try_into().unwrap());
        frontends.push(Frontend { service, kind, protocol, at });
    };
    for port in elements(&spec["ports"]) {
        let protocol = if port["protocol"] == "TCP" { Protocol::Tcp } else { Protocol::Udp };
        for (kind, addresses) in [
            (Kind::ClusterIp, cluster_ips.clone()),
            (Kind::ExternalIp, addresses(&spec["externalIPs"])),
            (Kind::Balancer, ingress(object)),
        ] {
            addresses
                .into_iter()
                .for_each(|address| add(kind, protocol, address, port["port"].as_u64().unwrap()));
        }
        let Some(node_port) = port["nodePort"].as_u64() else { continue };
        for family in cluster_ips.iter().map(|address| usize::from(address.is_ipv6())) {
            let [here, there] = [0, 1].map(|node| lab.node(node).addresses()[family]);
            add(Kind::NodePort, protocol, here, node_port);
            add(Kind::NodePortThere, protocol, there, node_port);
            add(Kind::NodePortBeside, protocol, beside(here, 0, OWN), node_port);
        }
    }
    cluster_ips
        .into_iter()
        .for_each(|address| add(Kind::UnknownPort, Protocol::Tcp, address, UNKNOWN_PORT.into()));
    frontends
}

/// Returns a load balancer's addresses.
fn ingress(object: &Value) -> Vec<IpAddr> {
    let ingress = elements(&object["status"]["loadBalancer"]["ingress"]);
    ingress.map(|ingress| ingress["ip"].as_str().unwrap().parse().unwrap()).collect()
}

/// Returns a list's addresses, without the `None` of a headless service.
fn addresses(list: &Value) -> Vec<IpAddr> {
    elements(list).filter_map(|address| address.as_str()?.parse().ok()).collect()
}

/// Returns the elements of a list; none if it is missing.
fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
