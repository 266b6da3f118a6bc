//! Networks of the world to which pods keep their own addresses, or to which the host's IPsec
//! policies apply.

use std::collections::BTreeMap;

use ipnet::IpNet;
use podwire_common::abi;

use super::Scope;
use crate::ipsec;
use crate::model::Model;
use crate::slice::{Prefix, Slice};

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
    let mut networks = BTreeMap::new();
    for (network, flag) in kept.chain(of_policies) {
        *networks.entry(network).or_default() |= flag;
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
}
