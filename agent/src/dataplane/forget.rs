//! Decides which known flows a change of a table makes stale, and tells the programs. The decision
//! is a pure function, described by a table.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use podwire_common::epoch::{self, ALL_FLOWS, EPOCH_SLOTS, GENERATION_AGENT};
use podwire_core::change::Change;
use podwire_core::slice::TableChange;

use super::maps::Maps;

/// Returns the slots of the flows that may get another verdict after a change.
///
/// | table | a known flow depends on it | forgotten |
/// |---|---|---|
/// | `ENDPOINTS` | by its pods' own entries | replaced or removed: the earlier endpoint |
/// | | by an address that no pod here had | new: the address's region |
/// | `NODES` | by the other end's prefix | the regions that the prefix covers |
/// | `NETWORKS` | a known destination depends on its network's entry | new or replaced: the regions that the prefix covers |
/// | `LINKS`, `LINKS6` | a known destination has its address | the link |
/// | `VTEPS` | a flow into the tunnel has its link address | the node |
/// | `TUNNEL_PEERS` | the sender of a flow out of the tunnel is in it | removed: the node |
/// | `FRONTENDS` | never: for a node's own address the programs learn only replies, which depend on their translations | |
/// | `SERVICES` | a known destination is not a service's address | new: the address's region |
/// | | a UDP flow goes on while its backend serves | the service |
/// | `SERVING` | a UDP flow goes on while its backend serves | removed: the service |
/// | `BACKENDS`, `POSITIONS` | never: a service's list does not change, and a flow keeps its backend | |
/// | `SOURCE_RANGES` | never: they admit only new flows | |
/// | `EGRESS_GUARDS` | never: no flow of a guarded pod is learnt, and the pod's own entry says so | |
///
/// A flow holds the region of the other end's address, so `NODES` does not need the previous entry:
/// the same prefix has the same regions when it is added, replaced and removed.
fn forgets(change: &TableChange) -> BTreeSet<u16> {
    match change {
        TableChange::Endpoints(Change { before: Some(before), .. }) => [epoch::endpoint(before.id)].into(),
        TableChange::Endpoints(Change { key, before: None, .. }) => [epoch::region(key)].into(),
        TableChange::Nodes(Change { key, .. }) => epoch::regions(&key.address, key.bits).collect(),
        TableChange::Networks(Change { key, now: Some(_), .. }) => {
            epoch::regions(&key.address, key.bits).collect()
        }
        TableChange::Links(Change { key, .. }) | TableChange::Links6(Change { key, .. }) => {
            [epoch::uplink(*key)].into()
        }
        TableChange::Vteps(Change { key, .. }) | TableChange::TunnelPeers(Change { key, now: None, .. }) => {
            [epoch::node(key)].into()
        }
        TableChange::Services(Change { key, before: None, now }) => {
            let service = now.iter().map(|now| epoch::service(now.id));
            service.chain([epoch::region(&key.address)]).collect()
        }
        TableChange::Services(Change { before: Some(before), .. }) => [epoch::service(before.id)].into(),
        TableChange::Serving(Change { key, now: None, .. }) => [epoch::service(key.service)].into(),
        TableChange::Networks(_)
        | TableChange::Serving(_)
        | TableChange::Backends(_)
        | TableChange::SourceRanges(_)
        | TableChange::Positions(_)
        | TableChange::TunnelPeers(_)
        | TableChange::Frontends(_)
        | TableChange::Guards(_) => BTreeSet::new(),
    }
}

impl Maps {
    /// Returns the sum of epochs that a flow with these slots gets if it is learnt now.
    pub fn sum_of_epochs(&self, slots: &[u16]) -> u32 {
        let epoch = |slot: &u16| self.epochs.of(usize::from(*slot)).load(Ordering::Relaxed);
        slots.iter().map(epoch).fold(0, u32::wrapping_add)
    }

    /// Makes the programs forget the flows that a change makes stale. The caller has written the
    /// table before.
    pub(super) fn forget_after(&self, change: &TableChange) {
        self.change_epochs(&forgets(change));
    }

    /// Makes the programs forget all known flows.
    pub fn forget_flows(&self) {
        self.change_epochs(&[ALL_FLOWS].into());
    }

    /// Makes a program that is learning a flow at this moment not learn it.
    pub(super) fn stop_learning(&self) {
        self.change_epochs(&BTreeSet::new());
    }

    /// Changes `GENERATION` first, then the epochs. A program may be learning a flow by the old
    /// entry of a table at this moment. It either sees the new generation and does not learn, or
    /// the new epochs make its entry stale. In the opposite order it could learn the stale flow
    /// with the new epochs.
    fn change_epochs(&self, slots: &BTreeSet<u16>) {
        self.generation.of(GENERATION_AGENT).fetch_add(1, Ordering::SeqCst);
        let change = |slot| {
            self.epochs.of(slot).fetch_add(1, Ordering::SeqCst);
        };
        if slots.contains(&ALL_FLOWS) {
            (0..EPOCH_SLOTS).for_each(change);
        } else {
            slots.iter().copied().map(usize::from).for_each(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_common::abi;
    use podwire_common::addr::{Addr, Be16, Mac};
    use podwire_core::slice::Prefix;

    const UPLINK: u32 = 7;

    fn address(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn prefix(text: &str) -> Prefix {
        let network: ipnet::IpNet = text.parse().unwrap();
        network.into()
    }

    fn endpoint(id: u32) -> abi::Endpoint {
        let (mac, gateway) = (Mac::default(), address("10.244.1.1"));
        abi::Endpoint { ifindex: id, id, flags: 0, mtu: 1450, pod_mac: mac, host_mac: mac, gateway }
    }

    #[test]
    fn each_change_forgets_what_it_makes_wrong() {
        let (pod, near, far) = (address("10.244.1.5"), address("10.200.0.2"), address("10.200.0.3"));
        let node =
            abi::Node { tunnel_endpoint: near, source: far, uplink: UPLINK, mtu: 1450, node_id: 1, flags: 0 };
        let link = abi::Link {
            ipv4: far,
            tunnel_address: far,
            mtu: 1500,
            kind: abi::LINK_UPLINK,
            refused: 0,
            reserved: 0,
        };
        let vtep = abi::Vtep { mac: Mac::default(), reserved: [0; 2] };
        let frontend = abi::Frontend { address: far, port: Be16::new(80), protocol: 6, clients: 0 };
        let backend = abi::Backend { address: pod, port: Be16::new(80), reserved: [0; 2] };
        let guard = abi::Guard { paid: 0, cost: 1, credit: 1 };
        let region = |text| epoch::region(&address(text));
        let (known, new) = (Some(endpoint(4)), endpoint(5));
        let nothing: Vec<u16> = Vec::new();
        let service = abi::Service { list: 7, id: 1 << 40, backends: 1, flags: 0, affinity: 0, reserved: 0 };
        let serving = abi::ServingKey {
            service: service.id,
            address: backend.address,
            port: backend.port,
            reserved: [0; 6],
        };
        let table = [
            ("a new pod", TableChange::Endpoints(Change::added(pod, new)), vec![region("10.244.1.0")]),
            (
                "another pod",
                TableChange::Endpoints(Change { key: pod, before: known, now: Some(new) }),
                vec![epoch::endpoint(4)],
            ),
            (
                "a pod removed",
                TableChange::Endpoints(Change { key: pod, before: known, now: None }),
                vec![epoch::endpoint(4)],
            ),
            (
                "a node",
                TableChange::Nodes(Change::added(prefix("10.244.2.0/24"), node)),
                vec![region("10.244.2.0")],
            ),
            (
                "a large node",
                TableChange::Nodes(Change::added(prefix("10.244.2.0/23"), node)),
                vec![region("10.244.2.9"), region("10.244.3.9")],
            ),
            ("a huge node", TableChange::Nodes(Change::added(prefix("10.0.0.0/8"), node)), vec![ALL_FLOWS]),
            (
                "a node's address",
                TableChange::Nodes(Change::added(prefix("10.200.0.2/32"), node)),
                vec![region("10.200.0.0")],
            ),
            (
                "a node removed",
                TableChange::Nodes(Change { key: prefix("10.244.2.0/24"), before: Some(node), now: None }),
                vec![region("10.244.2.0")],
            ),
            (
                "an exclusion",
                TableChange::Networks(Change::added(prefix("192.0.2.0/24"), 1)),
                vec![region("192.0.2.0")],
            ),
            (
                "no exclusion",
                TableChange::Networks(Change { key: prefix("192.0.2.0/24"), before: Some(1), now: None }),
                nothing.clone(),
            ),
            ("a link", TableChange::Links(Change::added(UPLINK, link)), vec![epoch::uplink(UPLINK)]),
            (
                "a link removed",
                TableChange::Links(Change { key: UPLINK, before: Some(link), now: None }),
                vec![epoch::uplink(UPLINK)],
            ),
            ("a VTEP", TableChange::Vteps(Change::added(near, vtep)), vec![epoch::node(&near)]),
            (
                "a VTEP removed",
                TableChange::Vteps(Change { key: near, before: Some(vtep), now: None }),
                vec![epoch::node(&near)],
            ),
            ("a peer", TableChange::TunnelPeers(Change::added(near, 1)), nothing.clone()),
            (
                "a peer removed",
                TableChange::TunnelPeers(Change { key: near, before: Some(1), now: None }),
                vec![epoch::node(&near)],
            ),
            ("a hostPort", TableChange::Frontends(Change::added(frontend, backend)), nothing.clone()),
            (
                "a hostPort removed",
                TableChange::Frontends(Change { key: frontend, before: Some(backend), now: None }),
                nothing.clone(),
            ),
            (
                "a service",
                TableChange::Services(Change::added(frontend, service)),
                vec![epoch::region(&frontend.address), epoch::service(service.id)],
            ),
            (
                "a service with another list",
                TableChange::Services(Change {
                    key: frontend,
                    before: Some(service),
                    now: Some(abi::Service { list: 8, ..service }),
                }),
                vec![epoch::service(service.id)],
            ),
            (
                "a service removed",
                TableChange::Services(Change { key: frontend, before: Some(service), now: None }),
                vec![epoch::service(service.id)],
            ),
            ("a backend that serves", TableChange::Serving(Change::added(serving, 0)), nothing.clone()),
            (
                "a backend that no longer serves",
                TableChange::Serving(Change { key: serving, before: Some(0), now: None }),
                vec![epoch::service(service.id)],
            ),
            ("a guard", TableChange::Guards(Change::added(4, guard)), nothing.clone()),
            (
                "a guard removed",
                TableChange::Guards(Change { key: 4, before: Some(guard), now: None }),
                nothing.clone(),
            ),
        ];
        for (what, change, expected) in table {
            let slots: Vec<u16> = forgets(&change).into_iter().collect();
            let expected: Vec<u16> = BTreeSet::from_iter(expected).into_iter().collect();
            assert_eq!(slots, expected, "{what}");
        }
    }
}
