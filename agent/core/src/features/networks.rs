//! Networks of the world to which pods keep their own addresses, or to which the host's IPsec
//! policies apply. Networks of services.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use podwire_common::abi;

use super::Scope;
use crate::ipsec;
use crate::model::Model;
use crate::slice::{Prefix, Slice};

/// The first v4-mapped address (RFC 4291 section 2.5.5.2).
const V4_MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

pub(super) fn desired(model: &Model, scope: Scope<'_>) -> Slice {
    let mut slice = Slice::default();
    if scope.is_all() {
        let networks = networks(model);
        let networks = with_what_contains_them(&networks);
        slice.tables.networks.extend(networks.map(|(network, flags)| (Prefix::from(network), flags)));
    }
    slice
}

fn networks(model: &Model) -> BTreeMap<IpNet, u32> {
    let kept = model.non_masquerade.iter().map(|network| (*network, abi::NETWORK_KEEPS_ADDRESS));
    let of_policies = model.own.iter().flat_map(|own| ipsec::of_world(model, own));
    // Before the agent knows the services, or while the programs serve none, their addresses are
    // kube-proxy's. The agent itself may need one to read the services.
    let is_served = !model.services.is_empty() && model.policies.is_empty();
    let of_services = model.service_networks.iter().filter(|_| is_served);
    let of_services = of_services.map(|network| (*network, abi::NETWORK_OF_SERVICES));
    let mut networks = BTreeMap::new();
    for (network, flag) in kept.chain(of_policies).chain(of_services) {
        *networks.entry(network).or_default() |= flag;
    }
    // An IPv6 network such as ::/0 also contains the form that IPv4 addresses have in the table
    // (`Addr`). Then an entry for all IPv4 addresses keeps its flags from them.
    if networks.keys().any(|network| network.contains(&IpAddr::V6(V4_MAPPED))) {
        networks.entry(Ipv4Net::default().into()).or_default();
    }
    networks
}

/// Returns each network with its own flags and those of the networks that contain it: a lookup
/// finds only the longest prefix.
fn with_what_contains_them(networks: &BTreeMap<IpNet, u32>) -> impl Iterator<Item = (IpNet, u32)> {
    networks.keys().map(|network| {
        let around = networks.iter().filter(|(other, _)| other.contains(network));
        (*network, around.fold(0, |all, (_, flags)| all | flags))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;
    use crate::services::ServiceName;

    #[test]
    fn a_network_has_the_flags_of_those_around_it() {
        let mut model = Model::new(Mode::Vxlan, None);
        let nets = ["10.0.0.0/8", "10.9.0.0/16", "192.0.2.0/24"].map(|text| text.parse::<IpNet>().unwrap());
        let flags = BTreeMap::from([(nets[0], 2), (nets[1], 1), (nets[2], 4)]);
        let found: BTreeMap<_, _> = with_what_contains_them(&flags).collect();
        assert_eq!(found, [(nets[0], 2), (nets[1], 3), (nets[2], 4)].into());
        model.non_masquerade.insert(nets[0]);
        assert_eq!(networks(&model), [(nets[0], abi::NETWORK_KEEPS_ADDRESS)].into());
    }

    #[test]
    fn networks_of_services_count_while_services_are_served() {
        let mut model = Model::new(Mode::Vxlan, None);
        let network: IpNet = "10.96.0.0/12".parse().unwrap();
        model.service_networks.insert(network);
        assert!(networks(&model).is_empty());
        let name = ServiceName { namespace: "default".into(), name: "web".into() };
        model.services.set(&name, Some(Vec::new()));
        assert_eq!(networks(&model), [(network, abi::NETWORK_OF_SERVICES)].into());
    }

    #[test]
    fn all_of_ipv6_leaves_ipv4_alone() {
        let mut model = Model::new(Mode::Vxlan, None);
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        model.non_masquerade = ["::/0", "10.0.0.0/8"].map(net).into();
        const KEPT: u32 = abi::NETWORK_KEEPS_ADDRESS;
        let found: BTreeMap<_, _> = with_what_contains_them(&networks(&model)).collect();
        assert_eq!(found, [(net("::/0"), KEPT), (net("0.0.0.0/0"), 0), (net("10.0.0.0/8"), KEPT)].into());
        model.non_masquerade = ["fd00::/8"].map(net).into();
        assert_eq!(networks(&model), [(net("fd00::/8"), KEPT)].into());
    }
}
