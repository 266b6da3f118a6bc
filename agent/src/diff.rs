//! What to do so that the kernel holds what is wanted. Pure.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use podwire_common::abi;
use podwire_common::addr::Addr;

use crate::desired::{Contents, Prefix, Route};

/// One change of a map or of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Adds to `NON_MASQUERADE`.
    SetNonMasquerade(Prefix, u32),
    /// Write an entry of `UPLINKS`.
    SetUplink(u32, abi::Uplink),
    /// Write an entry of `TUNNEL_PEERS`.
    SetTunnelPeer(Addr, u32),
    /// Write an entry of `VTEPS`.
    SetVtep(Addr, abi::Vtep),
    /// Write an entry of `NODES`.
    SetNode(Prefix, abi::Node),
    /// Write an entry of `EGRESS_GUARDS`.
    SetGuard(u32, abi::Guard),
    /// Write an entry of `ENDPOINTS`.
    SetEndpoint(Addr, abi::Endpoint),
    /// Write an entry of `FRONTENDS`.
    SetFrontend(abi::Frontend, abi::Backend),
    /// Add or replace a route.
    SetRoute(Ipv4Net, Route),
    /// Remove a route.
    RemoveRoute(Ipv4Net, Route),
    /// Remove an entry of `FRONTENDS`.
    RemoveFrontend(abi::Frontend),
    /// Remove an entry of `ENDPOINTS`.
    RemoveEndpoint(Addr),
    /// Remove an entry of `EGRESS_GUARDS`.
    RemoveGuard(u32),
    /// Remove an entry of `NODES`.
    RemoveNode(Prefix),
    /// Remove an entry of `VTEPS`.
    RemoveVtep(Addr),
    /// Remove an entry of `TUNNEL_PEERS`.
    RemoveTunnelPeer(Addr),
    /// Remove an entry of `UPLINKS`.
    RemoveUplink(u32),
    /// Removes from `NON_MASQUERADE`.
    RemoveNonMasquerade(Prefix),
}

/// Whether what is there and not wanted may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletions {
    /// Yes.
    Allowed,
    /// No: not everything is known yet (before the first node list after a start).
    Withheld,
}

/// The operations, in order: what is pointed at is written before what points at it (uplinks, peers, VTEPs, nodes, guards, endpoints,
/// frontends, routes) and removed after it. Nothing that stays is absent at any moment.
pub fn diff(want: &Contents, have: &Contents, deletions: Deletions) -> Vec<Op> {
    let mut ops = Vec::new();
    let excluded = missing(&want.non_masquerade, &have.non_masquerade);
    ops.extend(excluded.map(|(key, value)| Op::SetNonMasquerade(key, value)));
    ops.extend(missing(&want.uplinks, &have.uplinks).map(|(key, value)| Op::SetUplink(key, value)));
    ops.extend(
        missing(&want.tunnel_peers, &have.tunnel_peers).map(|(key, value)| Op::SetTunnelPeer(key, value)),
    );
    ops.extend(missing(&want.vteps, &have.vteps).map(|(key, value)| Op::SetVtep(key, value)));
    ops.extend(missing(&want.nodes, &have.nodes).map(|(key, value)| Op::SetNode(key, value)));
    ops.extend(missing(&want.guards, &have.guards).map(|(key, value)| Op::SetGuard(key, value)));
    for (address, wanted) in &want.endpoints {
        let there = have.endpoints.get(address);
        let wanted = keep_program_flags(*wanted, there);
        if there != Some(&wanted) {
            ops.push(Op::SetEndpoint(*address, wanted));
        }
    }
    ops.extend(missing(&want.frontends, &have.frontends).map(|(key, value)| Op::SetFrontend(key, value)));
    ops.extend(missing(&want.routes, &have.routes).map(|(key, value)| Op::SetRoute(key, value)));
    if deletions == Deletions::Withheld {
        return ops;
    }
    ops.extend(surplus(&want.routes, &have.routes).map(|(key, value)| Op::RemoveRoute(key, value)));
    ops.extend(surplus(&want.frontends, &have.frontends).map(|(key, _)| Op::RemoveFrontend(key)));
    ops.extend(surplus(&want.endpoints, &have.endpoints).map(|(key, _)| Op::RemoveEndpoint(key)));
    ops.extend(surplus(&want.guards, &have.guards).map(|(key, _)| Op::RemoveGuard(key)));
    ops.extend(surplus(&want.nodes, &have.nodes).map(|(key, _)| Op::RemoveNode(key)));
    ops.extend(surplus(&want.vteps, &have.vteps).map(|(key, _)| Op::RemoveVtep(key)));
    ops.extend(surplus(&want.tunnel_peers, &have.tunnel_peers).map(|(key, _)| Op::RemoveTunnelPeer(key)));
    ops.extend(surplus(&want.uplinks, &have.uplinks).map(|(key, _)| Op::RemoveUplink(key)));
    let included = surplus(&want.non_masquerade, &have.non_masquerade);
    ops.extend(included.map(|(key, _)| Op::RemoveNonMasquerade(key)));
    ops
}

/// The flag that the programs set stays as it is, while the entry is of the same endpoint.
fn keep_program_flags(wanted: abi::Endpoint, there: Option<&abi::Endpoint>) -> abi::Endpoint {
    let kept = there
        .filter(|there| (there.id, there.ifindex) == (wanted.id, wanted.ifindex))
        .map_or(0, |there| there.flags & abi::ENDPOINT_STACK_ONLY);
    abi::Endpoint { flags: wanted.flags | kept, ..wanted }
}

fn missing<K: Ord + Copy, V: PartialEq + Copy>(
    want: &BTreeMap<K, V>,
    have: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    want.iter().filter(|(key, value)| have.get(key) != Some(value)).map(|(key, value)| (*key, *value))
}

fn surplus<K: Ord + Copy, V: Copy>(
    want: &BTreeMap<K, V>,
    have: &BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V)> {
    have.iter().filter(|(key, _)| !want.contains_key(key)).map(|(key, value)| (*key, *value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{desired, desired_of};
    use crate::model::{Mode, Model, Node, Uplink};
    use crate::nodes::changes::changes;
    use crate::nodes::{Cluster, NodeRecord};
    use podwire_common::addr::{Be16, Mac};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn apply(contents: &mut Contents, op: &Op) {
        match *op {
            Op::SetNonMasquerade(key, value) => drop(contents.non_masquerade.insert(key, value)),
            Op::RemoveNonMasquerade(key) => assert!(contents.non_masquerade.remove(&key).is_some()),
            Op::SetUplink(key, value) => drop(contents.uplinks.insert(key, value)),
            Op::SetTunnelPeer(key, value) => drop(contents.tunnel_peers.insert(key, value)),
            Op::SetVtep(key, value) => drop(contents.vteps.insert(key, value)),
            Op::SetNode(key, value) => drop(contents.nodes.insert(key, value)),
            Op::SetGuard(key, value) => drop(contents.guards.insert(key, value)),
            Op::SetEndpoint(key, value) => drop(contents.endpoints.insert(key, value)),
            Op::SetFrontend(key, value) => drop(contents.frontends.insert(key, value)),
            Op::SetRoute(key, value) => drop(contents.routes.insert(key, value)),
            Op::RemoveRoute(key, _) => assert!(contents.routes.remove(&key).is_some()),
            Op::RemoveFrontend(key) => assert!(contents.frontends.remove(&key).is_some()),
            Op::RemoveGuard(key) => assert!(contents.guards.remove(&key).is_some()),
            Op::RemoveEndpoint(key) => assert!(contents.endpoints.remove(&key).is_some()),
            Op::RemoveNode(key) => assert!(contents.nodes.remove(&key).is_some()),
            Op::RemoveVtep(key) => assert!(contents.vteps.remove(&key).is_some()),
            Op::RemoveTunnelPeer(key) => assert!(contents.tunnel_peers.remove(&key).is_some()),
            Op::RemoveUplink(key) => assert!(contents.uplinks.remove(&key).is_some()),
        }
    }

    fn address(last: u8) -> Addr {
        Addr::from_v4([10, 0, 0, last])
    }

    fn endpoint(id: u32, flags: u32) -> abi::Endpoint {
        let mac = Mac { bytes: [2; 6] };
        abi::Endpoint { ifindex: id, id, flags, mtu: 1450, pod_mac: mac, host_mac: mac, gateway: address(1) }
    }

    // Few ranges and addresses: they go from one node to another.
    fn nodes() -> impl Strategy<Value = Vec<NodeRecord>> {
        let node = (1u8..6, 0u8..5, 23u8..=26, 1u8..6, any::<bool>());
        prop::collection::vec(node, 0..6).prop_map(|nodes| {
            let record = |(name, range, bits, address, cordoned)| NodeRecord {
                name: format!("node{name}"),
                pod_networks: vec![format!("10.244.{range}.0/{bits}").parse().unwrap()],
                internal_addresses: vec![Ipv4Addr::new(10, 200, 0, address).into()],
                cordoned,
                ..NodeRecord::default()
            };
            nodes.into_iter().map(record).collect()
        })
    }

    // Few keys, so that the two sides meet often.
    prop_compose! {
        fn contents()(
            uplinks in prop::collection::btree_map(0u32..4, 0u32..3, 0..4),
            tunnel_peers in prop::collection::btree_map(0u8..6, 0u32..3, 0..6),
            vteps in prop::collection::btree_map(0u8..6, 0u8..3, 0..6),
            nodes in prop::collection::btree_map((0u8..6, 120u32..=128), 0u32..3, 0..6),
            guards in prop::collection::btree_map(0u32..6, 0u64..3, 0..6),
            endpoints in prop::collection::btree_map(0u8..6, 0u32..3, 0..6),
            frontends in prop::collection::btree_map((0u8..3, 80u16..83), 0u8..3, 0..6),
            routes in prop::collection::btree_map(0u8..6, prop::option::of(0u32..3), 0..6),
            excluded in prop::collection::btree_map((0u8..6, 120u32..=128), Just(1u32), 0..4),
        ) -> Contents {
            let uplink = |mtu| abi::Uplink { ipv4: address(1), tunnel_address: address(1), mtu, reserved: 0 };
            let node = |flags| abi::Node {
                tunnel_endpoint: address(1), source: address(2), uplink: 1, mtu: 1450, node_id: 1, flags,
            };
            let vtep = |last| abi::Vtep { mac: Mac { bytes: [2, 0, 0, 0, 0, last] }, reserved: [0; 2] };
            let frontend = |(last, port)| abi::Frontend {
                address: address(last), port: Be16::new(port), protocol: 6, reserved: 0,
            };
            let backend = |last| abi::Backend { address: address(last), port: Be16::new(8080), reserved: [0; 2] };
            let route = |device: Option<u32>| device.map_or(
                Route::Unreachable,
                |device| Route::Link { device, gateway: None, source: None },
            );
            let prefix = |(last, bits)| Prefix { address: address(last), bits };
            Contents {
                uplinks: uplinks.into_iter().map(|(key, mtu)| (key, uplink(mtu))).collect(),
                non_masquerade: excluded.into_iter().map(|(key, one)| (prefix(key), one)).collect(),
                tunnel_peers: tunnel_peers.into_iter().map(|(key, id)| (address(key), id)).collect(),
                vteps: vteps.into_iter().map(|(key, last)| (address(key), vtep(last))).collect(),
                nodes: nodes.into_iter().map(|(key, flags)| (prefix(key), node(flags))).collect(),
                guards: guards.into_iter().map(|(key, cost)| (key, abi::Guard { paid: 0, cost, credit: 1 })).collect(),
                endpoints: endpoints.into_iter().map(|(key, id)| (address(key), endpoint(id, 0))).collect(),
                frontends: frontends.into_iter().map(|(key, last)| (frontend(key), backend(last))).collect(),
                routes: routes
                    .into_iter()
                    .map(|(key, device)| (Ipv4Addr::new(10, 0, 0, key).into(), route(device)))
                    .collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn applied_to_what_is_there_it_gives_what_is_wanted(want in contents(), have in contents()) {
            let mut reached = have.clone();
            for op in diff(&want, &have, Deletions::Allowed) {
                apply(&mut reached, &op);
            }
            prop_assert_eq!(&reached, &want);
            prop_assert_eq!(diff(&want, &reached, Deletions::Allowed), []);
        }

        #[test]
        fn what_changed_nodes_ask_for_leads_to_what_all_nodes_ask_for(before in nodes(), now in nodes()) {
            let model = |records: &[NodeRecord]| {
                let cluster = Cluster::from_records(records, "node0", &[]).0;
                let mut model = Model::new(Mode::Vxlan, Some(1450));
                let own = "10.9.0.0/24".parse().unwrap();
                model.own = Some(Node { name: "node0".into(), uid: None, pod_network: own, address: Ipv4Addr::new(10, 8, 0, 1), cordoned: false, vtep_mac: None });
                model.vxlan = Some(7);
                model.uplinks.push(Uplink { index: 2, name: "eth0".into(), mtu: 1500, addresses: Vec::new() });
                model.remote = cluster.remote;
                model
            };
            let (before, now) = (model(&before), model(&now));
            let changed = changes(&before.remote, &now.remote);
            let have = desired_of(&before, changed.iter().filter_map(|change| change.before));
            let want = desired_of(&now, changed.iter().filter_map(|change| change.now));
            let mut reached = desired(&before);
            for op in diff(&want, &have, Deletions::Allowed) {
                apply(&mut reached, &op);
            }
            prop_assert_eq!(reached, desired(&now));
        }

        #[test]
        fn nothing_is_removed_while_deletions_are_withheld(want in contents(), have in contents()) {
            let mut reached = have.clone();
            for op in diff(&want, &have, Deletions::Withheld) {
                apply(&mut reached, &op);
            }
            prop_assert!(have.nodes.keys().all(|key| reached.nodes.contains_key(key)));
            prop_assert!(have.routes.keys().all(|key| reached.routes.contains_key(key)));
            prop_assert!(have.endpoints.keys().all(|key| reached.endpoints.contains_key(key)));
            prop_assert!(have.frontends.keys().all(|key| reached.frontends.contains_key(key)));
            prop_assert!(want.nodes.iter().all(|(key, value)| reached.nodes.get(key) == Some(value)));
        }

        #[test]
        fn referents_are_written_before_and_removed_after_referrers(want in contents(), have in contents()) {
            let order = |op: &Op| match op {
                Op::SetUplink(..) | Op::SetNonMasquerade(..) => 0,
                Op::SetTunnelPeer(..) => 1,
                Op::SetVtep(..) => 2,
                Op::SetNode(..) => 3,
                Op::SetGuard(..) => 4,
                Op::SetEndpoint(..) => 5,
                Op::SetFrontend(..) => 6,
                Op::SetRoute(..) => 7,
                Op::RemoveRoute(..) => 8,
                Op::RemoveFrontend(..) => 9,
                Op::RemoveEndpoint(..) => 10,
                Op::RemoveGuard(..) => 11,
                Op::RemoveNode(..) => 12,
                Op::RemoveVtep(..) => 13,
                Op::RemoveTunnelPeer(..) => 14,
                Op::RemoveUplink(..) | Op::RemoveNonMasquerade(..) => 15,
            };
            prop_assert!(diff(&want, &have, Deletions::Allowed).is_sorted_by_key(order));
        }
    }

    #[test]
    fn programs_flag_survives_reconciling_but_no_other_endpoint() {
        let one = |endpoint| Contents {
            endpoints: BTreeMap::from([(address(2), endpoint)]),
            ..Contents::default()
        };
        let marked = one(endpoint(7, abi::ENDPOINT_STACK_ONLY));
        assert_eq!(diff(&one(endpoint(7, 0)), &marked, Deletions::Allowed), []);
        let wanted = one(endpoint(7, abi::ENDPOINT_HAS_HOST_PORTS));
        let both = endpoint(7, abi::ENDPOINT_HAS_HOST_PORTS | abi::ENDPOINT_STACK_ONLY);
        assert_eq!(diff(&wanted, &marked, Deletions::Allowed), [Op::SetEndpoint(address(2), both)]);
        let unwanted = Op::SetEndpoint(address(2), endpoint(7, abi::ENDPOINT_STACK_ONLY));
        assert_eq!(diff(&marked, &one(both), Deletions::Allowed), [unwanted], "the agent's own flag goes");
        let ops = diff(&one(endpoint(8, 0)), &marked, Deletions::Allowed);
        assert_eq!(ops, [Op::SetEndpoint(address(2), endpoint(8, 0))]);
    }
}
