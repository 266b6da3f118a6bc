//! Checks whether the hostPorts that a pod asks for are free. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use thiserror::Error;

use crate::features::frontends;
use crate::model::{Endpoint, Family, PortMapping, Transport};

/// Reason why a pod does not get its hostPorts.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unavailable {
    /// Another pod has the hostPort.
    #[error(
        "hostPort {wanted}: pod {pod} has {taken} on this node already: choose another hostPort or hostIP, or delete that pod"
    )]
    Taken {
        /// The mapping that the pod asks for.
        wanted: PortMapping,
        /// The mapping that exists.
        taken: PortMapping,
        /// The pod that has it.
        pod: String,
    },
    /// The hostPort is the UDP port of the tunnel.
    #[error(
        "hostPort {0}: UDP {port} is the port of the tunnel between the nodes (--vxlan-port): choose another hostPort", port = .0.host_port
    )]
    Tunnel(PortMapping),
    /// The node's table cannot hold so many hostPorts.
    #[error(
        "portMappings takes {wanted} entries of the table of hostPorts, but pods of this node already have {used} of the {capacity} entries (a hostPort without hostIP takes one for each family of its pod): raise --max-host-ports and restart the node, or delete pods that have hostPorts"
    )]
    Full {
        /// Number of entries that the pod's hostPorts take.
        wanted: usize,
        /// Number of entries that other pods' hostPorts have.
        used: usize,
        /// Number of entries of the table.
        capacity: usize,
    },
    /// The pod asks for the same hostPort twice, with different ports of its own.
    #[error("portMappings asks for {0} and for {1}: a hostPort leads to one port, so leave one out")]
    Contradiction(PortMapping, PortMapping),
}

/// Checks whether a pod can get its hostPorts.
///
/// - `others`: endpoints of other attachments.
/// - `families`: those of the pod's addresses.
/// - `tunnel_port`: UDP port of the tunnel, if there is one.
/// - `capacity`: number of entries of the table of hostPorts.
///
/// # Errors
/// The first obstacle that is found.
pub fn check<'a>(
    wanted: &[PortMapping],
    families: &[Family],
    others: impl Iterator<Item = &'a Endpoint> + Clone,
    tunnel_port: Option<u16>,
    capacity: usize,
) -> Result<(), Unavailable> {
    let used = others.clone().map(|endpoint| frontends(endpoint).count()).sum();
    let leads_to = |mapping: &PortMapping, family| {
        mapping.host_address.is_none_or(|address| Family::of(address) == family)
    };
    let entries =
        |mapping: &PortMapping| families.iter().filter(|family| leads_to(mapping, **family)).count();
    let taken = wanted.iter().map(entries).sum();
    if !wanted.is_empty() && taken + used > capacity {
        return Err(Unavailable::Full { wanted: taken, used, capacity });
    }
    for (index, mapping) in wanted.iter().enumerate() {
        if mapping.protocol == Transport::Udp && tunnel_port == Some(mapping.host_port.get()) {
            return Err(Unavailable::Tunnel(*mapping));
        }
        let contradicts =
            |other: &&PortMapping| overlap(mapping, other) && mapping.container_port != other.container_port;
        if let Some(other) = wanted[index + 1..].iter().find(contradicts) {
            return Err(Unavailable::Contradiction(*mapping, *other));
        }
        for endpoint in others.clone() {
            if let Some(taken) = endpoint.port_mappings.iter().find(|taken| overlap(mapping, taken)) {
                let pod = endpoint.to_string();
                return Err(Unavailable::Taken { wanted: *mapping, taken: *taken, pod });
            }
        }
    }
    Ok(())
}

/// Returns the host addresses that are not among this node's `addresses`. The hostPorts there are
/// unreachable until the node has these addresses.
pub fn foreign_addresses(wanted: &[PortMapping], addresses: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let named = wanted.iter().filter_map(|mapping| mapping.host_address);
    let is_nodes =
        |address: &IpAddr| address.is_unspecified() || address.is_loopback() || addresses.contains(address);
    named.filter(|address| !is_nodes(address)).collect()
}

/// Returns whether one packet could be meant for both mappings.
fn overlap(one: &PortMapping, other: &PortMapping) -> bool {
    // Without an address, a mapping is for all addresses of both families.
    let same_address = match (one.host_address, other.host_address) {
        (Some(one), Some(other)) => {
            let is_any = one.is_unspecified() || other.is_unspecified();
            one == other || is_any && one.is_ipv4() == other.is_ipv4()
        }
        _ => true,
    };
    same_address && (one.host_port, one.protocol) == (other.host_port, other.protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::num::NonZeroU16;

    const TUNNEL: Option<u16> = Some(8472);
    const ONE: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1)));
    const OTHER: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    const ANY: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    const ONE6: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)));
    const OTHER6: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
    const ANY6: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));

    fn check<'a>(
        wanted: &[PortMapping],
        others: impl Iterator<Item = &'a Endpoint> + Clone,
        tunnel_port: Option<u16>,
    ) -> Result<(), Unavailable> {
        super::check(wanted, &Family::ALL, others, tunnel_port, 4096)
    }

    fn mapping(address: Option<IpAddr>, protocol: Transport, host: u16, container: u16) -> PortMapping {
        let port = |number| NonZeroU16::new(number).unwrap();
        PortMapping {
            host_address: address,
            host_port: port(host),
            container_port: port(container),
            protocol,
        }
    }

    fn endpoint(mapping: PortMapping) -> Endpoint {
        Endpoint { port_mappings: vec![mapping], ..Endpoint::example() }
    }

    #[test]
    fn pods_share_a_port_only_by_protocol_or_particular_addresses() {
        use Transport::{Tcp, Udp};
        for (one, other, is_free) in [
            (mapping(ONE, Tcp, 80, 8080), mapping(ONE, Tcp, 80, 8081), false),
            (mapping(None, Tcp, 80, 8080), mapping(None, Udp, 80, 8080), true),
            (mapping(None, Tcp, 80, 8080), mapping(None, Tcp, 81, 8080), true),
        ] {
            check_both_ways(one, other, is_free);
        }
        let addresses = [None, ANY, ONE, OTHER, ANY6, ONE6, OTHER6];
        // A row and a column for each address: 1 where both may have the port.
        let is_free = [
            [0, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1, 1],
            [0, 0, 0, 1, 1, 1, 1],
            [0, 0, 1, 0, 1, 1, 1],
            [0, 1, 1, 1, 0, 0, 0],
            [0, 1, 1, 1, 0, 0, 1],
            [0, 1, 1, 1, 0, 1, 0],
        ];
        for (one, row) in addresses.iter().zip(is_free) {
            for (other, is_free) in addresses.iter().zip(row) {
                check_both_ways(mapping(*one, Tcp, 80, 8080), mapping(*other, Tcp, 80, 8080), is_free == 1);
            }
        }
    }

    fn check_both_ways(one: PortMapping, other: PortMapping, is_free: bool) {
        for (wanted, taken) in [(one, other), (other, one)] {
            let found = check(&[wanted], [endpoint(taken)].iter(), TUNNEL);
            assert_eq!(found.is_ok(), is_free, "{wanted} beside {taken}");
            if let Err(refusal) = found {
                assert!(refusal.to_string().contains("default/web"), "{refusal}");
            }
        }
    }

    #[test]
    fn the_tunnels_port_is_not_given_while_there_is_a_tunnel() {
        let wanted = [mapping(None, Transport::Udp, 8472, 53)];
        assert_eq!(check(&wanted, [].iter(), TUNNEL), Err(Unavailable::Tunnel(wanted[0])));
        assert_eq!(check(&wanted, [].iter(), None), Ok(()));
        assert_eq!(check(&[mapping(None, Transport::Tcp, 8472, 53)], [].iter(), TUNNEL), Ok(()));
    }

    #[test]
    fn mappings_of_one_pod_may_overlap_but_not_contradict() {
        let one = mapping(None, Transport::Tcp, 80, 8080);
        assert_eq!(check(&[one, mapping(OTHER, Transport::Tcp, 80, 8080)], [].iter(), TUNNEL), Ok(()));
        for other in [mapping(None, Transport::Tcp, 80, 8081), mapping(ONE, Transport::Tcp, 80, 8081)] {
            let found = check(&[one, other], [].iter(), TUNNEL);
            assert_eq!(found, Err(Unavailable::Contradiction(one, other)));
        }
    }

    #[test]
    fn no_more_are_given_than_the_node_can_have() {
        let other = endpoint(mapping(None, Transport::Tcp, 80, 8080));
        let wanted = [81, 82].map(|port| mapping(None, Transport::Tcp, port, 8080));
        let check =
            |families, capacity| super::check(&wanted, families, [&other].into_iter(), None, capacity);
        assert_eq!(check(&[Family::V4], 3), Ok(()));
        let full = |wanted, capacity| Err(Unavailable::Full { wanted, used: 1, capacity });
        assert_eq!(check(&[Family::V4], 2), full(2, 2));
        assert_eq!(check(&Family::ALL, 5), Ok(()));
        assert_eq!(check(&Family::ALL, 4), full(4, 4));
        // After a restart with a smaller table, other pods may already have more hostPorts than it
        // holds. A pod without hostPorts must start nevertheless.
        assert_eq!(super::check(&[], &[], [&other].into_iter(), None, 0), Ok(()));
    }

    #[test]
    fn host_addresses_that_the_node_lacks_are_told() {
        let wanted = [ONE, OTHER, None, ANY, ANY6, OTHER6, ONE6, Some(IpAddr::from([192, 0, 2, 9]))]
            .map(|address| mapping(address, Transport::Tcp, 80, 80));
        let found = foreign_addresses(&wanted, &ONE.into_iter().collect());
        assert_eq!(found, ONE6.into_iter().chain([IpAddr::from([192, 0, 2, 9])]).collect());
    }
}
