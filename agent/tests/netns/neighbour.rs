//! A host on a second link of every node.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use xtask::lab::{Lab, Ns, connect};

/// The last part of the addresses of a node's second uplink, IPv4 and IPv6.
pub const OWN: (u8, u16) = (1, 1);
/// The same of the neighbour on that link.
pub const DISTANT: (u8, u16) = (66, 0x66);

/// Gives each node a second uplink `eth1`, with 10.201.N.1 and fd00:10:201:N::1. It leads to a host
/// that reaches the node's own addresses by that link.
///
/// # Errors
/// When the kernel refuses.
pub fn add_neighbour(lab: &Lab) -> Result<Ns> {
    let neighbour = lab.add_namespace("neighbour")?;
    for of in ["all", "default"] {
        neighbour.sysctl(&format!("net/ipv6/conf/{of}/disable_ipv6"), "0")?;
    }
    for (number, node) in lab.nodes().iter().enumerate() {
        connect(&neighbour, node.name(), node, "eth1")?;
        for address in node.addresses() {
            let (own, other) = (beside(address, number, OWN), beside(address, number, DISTANT));
            let (length, nodad) = if address.is_ipv4() { (24, "") } else { (64, "nodad") };
            // Above the metric of the uplink's default route, which is 1024 for IPv6.
            node.ip(&format!(
                "address add {own}/{length} dev eth1 {nodad}\nroute add default via {other} metric 2000\n"
            ))?;
            neighbour.ip(&format!(
                "address add {other}/{length} dev {} {nodad}\nroute add {address} via {own}\n",
                node.name()
            ))?;
        }
    }
    Ok(neighbour)
}

/// Leads packets of the world and of the neighbour to the first node, each by its own link.
///
/// # Panics
/// When the kernel refuses.
pub fn lead_to_first_node(lab: &Lab, neighbour: &Ns, networks: &[&str]) {
    let node = lab.node(0).addresses();
    for network in networks {
        let via = node[usize::from(network.contains(':'))];
        lab.underlay().ip(&format!("route add {network} via {via}")).unwrap();
        neighbour.ip(&format!("route add {network} via {}", beside(via, 0, OWN))).unwrap();
    }
}

/// Returns an address in the network of a node's (from 0) second uplink, of the same family as `like`.
pub fn beside(like: IpAddr, node: usize, (last4, last6): (u8, u16)) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([10, 201, node as u8 + 1, last4]),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0x10, 0x201, node as u16 + 1, 0, 0, 0, last6).into(),
    }
}
