//! Filters of what commands show.

use std::net::IpAddr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use podwire_common::reason::Drop;
use serde::{Deserialize, Serialize};

use crate::packet_record::End;

/// Filters by pod.
#[derive(Args, Clone, Debug, Default)]
pub struct Pods {
    /// Show only this pod, by its name or by NAMESPACE/NAME.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub pod: Option<String>,
    /// Show only pods of this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

impl Pods {
    /// Returns whether a pod passes. `pod`: namespace and name, if it has any.
    pub fn admit(&self, pod: Option<&str>) -> bool {
        let parts = pod.and_then(|pod| pod.split_once('/'));
        let is_pod = |wanted: &String| pod == Some(wanted) || parts.is_some_and(|(_, name)| name == wanted);
        let is_in = |wanted: &String| parts.is_some_and(|(namespace, _)| namespace == wanted);
        self.pod.as_ref().is_none_or(is_pod) && self.namespace.as_ref().is_none_or(is_in)
    }

    fn is_set(&self) -> bool {
        self.pod.is_some() || self.namespace.is_some()
    }
}

/// Filters by address.
#[derive(Args, Clone, Debug, Default)]
pub struct Addresses {
    /// Show only this address, or addresses of this network.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = network)]
    pub address: Option<IpNet>,
    /// Show only addresses of this family.
    #[arg(long, value_name = "FAMILY")]
    pub family: Option<Family>,
}

impl Addresses {
    fn are_set(&self) -> bool {
        self.address.is_some() || self.family.is_some()
    }

    /// Returns whether an address passes.
    pub fn admit(&self, address: IpAddr) -> bool {
        self.address.is_none_or(|network| network.contains(&address)) && self.admit_family(address)
    }

    fn admit_family(&self, address: IpAddr) -> bool {
        self.family.is_none_or(|family| (family == Family::Ipv4) == address.is_ipv4())
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// Filters of flows. Each filter must hold for at least one end of a flow, translated ends
/// included.
#[derive(Args, Clone, Debug, Default)]
pub struct Flows {
    /// Filters by pod.
    #[command(flatten)]
    pub pods: Pods,
    /// Show only flows with an address of this node, or with a pod there.
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// Filters by address.
    #[command(flatten)]
    pub addresses: Addresses,
    /// Show only flows with this port.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Show only flows of this protocol, by name or number.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
}

impl Flows {
    /// Returns whether there is any filter.
    pub fn are_set(&self) -> bool {
        self.pods.is_set()
            || self.node.is_some()
            || self.addresses.are_set()
            || self.port.is_some()
            || self.protocol.is_some()
    }

    /// Returns whether a flow passes. `protocol`: the name or number that the flow is shown with.
    pub fn admit(&self, protocol: &str, ends: &[&End]) -> bool {
        let any = |admits: &dyn Fn(&End) -> bool| ends.iter().any(|end| admits(end));
        let is_protocol = |wanted: &String| {
            let number = protocol.strip_prefix("protocol ").unwrap_or(protocol);
            wanted.eq_ignore_ascii_case(protocol) || wanted == number
        };
        self.protocol.as_ref().is_none_or(is_protocol)
            && (!self.pods.is_set() || any(&|end| self.pods.admit(end.pod.as_deref())))
            && self.node.as_ref().is_none_or(|node| any(&|end| end.node.as_ref() == Some(node)))
            && (!self.addresses.are_set() || any(&|end| self.addresses.admit(end.address)))
            && self.port.is_none_or(|port| any(&|end| end.port == Some(port)))
    }
}

/// Returns a parser for the name of a reason to drop a packet.
pub fn reason() -> impl TypedValueParser<Value = Drop> {
    let names = Drop::ALL.iter().map(|reason| reason.name());
    PossibleValuesParser::new(names).try_map(|name| {
        let named = Drop::ALL.iter().find(|reason| reason.name() == name);
        named.copied().ok_or("there is no such reason")
    })
}

/// Parses an address or a network.
fn network(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse())
        .map_err(|_| "give an address such as 10.244.1.5, or a network such as 10.244.1.0/24".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(address: &str, port: u16, pod: Option<&str>, node: Option<&str>) -> End {
        End {
            address: address.parse().unwrap(),
            port: Some(port),
            pod: pod.map(Into::into),
            node: node.map(Into::into),
        }
    }

    #[test]
    fn each_filter_asks_for_an_end_that_it_fits() {
        let client = end("10.244.1.5", 40000, Some("shop/web"), Some("node1"));
        let server = end("10.244.2.9", 443, None, Some("node2"));
        let admits = |filter: Flows| filter.admit("tcp", &[&client, &server]);
        let pod = |pod: &str, namespace: Option<&str>| Flows {
            pods: Pods { pod: Some(pod.into()), namespace: namespace.map(Into::into) },
            ..Flows::default()
        };
        assert!(admits(Flows::default()));
        assert!(admits(pod("web", None)) && admits(pod("shop/web", Some("shop"))));
        assert!(!admits(pod("we", None)) && !admits(pod("web", Some("lab"))));
        let node = |node: &str| Flows { node: Some(node.into()), ..Flows::default() };
        assert!(admits(node("node2")) && !admits(node("node3")));
        let port = |port| Flows { port: Some(port), ..Flows::default() };
        assert!(admits(port(443)) && admits(port(40000)) && !admits(port(80)));
        let address = |text: &str| Flows {
            addresses: Addresses { address: Some(network(text).unwrap()), family: None },
            ..Flows::default()
        };
        assert!(admits(address("10.244.2.9")) && admits(address("10.244.2.0/24")));
        assert!(!admits(address("10.244.3.0/24")));
        let family = |family| Flows {
            addresses: Addresses { address: None, family: Some(family) },
            ..Flows::default()
        };
        assert!(admits(family(Family::Ipv4)) && !admits(family(Family::Ipv6)));
        let protocol = |name: &str| Flows { protocol: Some(name.into()), ..Flows::default() };
        assert!(admits(protocol("TCP")) && !admits(protocol("udp")));
        assert!(protocol("47").admit("protocol 47", &[&client]));
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        assert!(network("10.244.1").unwrap_err().contains("10.244.1.0/24"));
    }
}
