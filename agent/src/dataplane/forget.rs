//! Which known flows are wrong after a change of a table, and how the programs are told. The list is pure and has a
//! table of its own below; [`Epochs`] writes it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use aya::Ebpf;
use podwire_common::abi;
use podwire_common::epoch::{self, ALL_FLOWS, EPOCH_SLOTS, GENERATION_AGENT, GENERATIONS};
use podwire_common::names::maps as names;

use super::numbers::Numbers;
use crate::diff::Op;
use crate::error::Error;

/// The slots of the flows that may be judged otherwise after an operation. `before`: the endpoint that the operation
/// replaces or removes.
///
/// | table | a known flow depends on it | forgotten |
/// |---|---|---|
/// | `ENDPOINTS` | by its pods' own entries | replaced or removed: the earlier endpoint |
/// | | by an address that was no pod's here | new: the address's region |
/// | `NODES` | by the other end's prefix | the regions that the prefix covers |
/// | `NON_MASQUERADE` | a known destination lies in none | new: the regions that the prefix covers |
/// | `UPLINKS` | a known destination has its address | the uplink |
/// | `VTEPS` | a flow into the tunnel has its link address | the node |
/// | `TUNNEL_PEERS` | the sender of a flow out of the tunnel is in it | removed: the node |
/// | `FRONTENDS` | never: no flow to a node's own address is learnt but replies, which their translations decide | |
/// | `EGRESS_GUARDS` | never: no flow of a guarded pod is learnt, and the pod's own entry says so | |
///
/// A flow holds the region of the other end's address, so `NODES` needs no entry of before: the same prefix names the
/// same regions when it is added, replaced and removed.
fn forgets(op: &Op, before: Option<&abi::Endpoint>) -> BTreeSet<u16> {
    match op {
        Op::SetEndpoint(..) | Op::RemoveEndpoint(..) if let Some(before) = before => {
            [epoch::endpoint(before.id)].into()
        }
        Op::SetEndpoint(address, _) => [epoch::region(address)].into(),
        Op::SetNode(prefix, _) | Op::RemoveNode(prefix) | Op::SetNonMasquerade(prefix, _) => {
            epoch::regions(&prefix.address, prefix.bits).collect()
        }
        Op::SetUplink(ifindex, _) | Op::RemoveUplink(ifindex) => [epoch::uplink(*ifindex)].into(),
        Op::SetVtep(address, _) | Op::RemoveVtep(address) | Op::RemoveTunnelPeer(address) => {
            [epoch::node(address)].into()
        }
        Op::RemoveEndpoint(_)
        | Op::RemoveNonMasquerade(_)
        | Op::SetTunnelPeer(..)
        | Op::SetFrontend(..)
        | Op::RemoveFrontend(_)
        | Op::SetGuard(..)
        | Op::RemoveGuard(_)
        | Op::SetRoute(..)
        | Op::RemoveRoute(..) => BTreeSet::new(),
    }
}

/// `GENERATION` and `EPOCHS`.
pub struct Epochs {
    generation: Numbers<GENERATIONS>,
    epochs: Numbers<EPOCH_SLOTS>,
}

impl Epochs {
    /// Takes both out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            generation: Numbers::take(ebpf, names::GENERATION)?,
            epochs: Numbers::take(ebpf, names::EPOCHS)?,
        })
    }

    /// The sum that a flow with these slots has when it is learnt now.
    pub fn sum(&self, slots: &[u16]) -> u32 {
        slots
            .iter()
            .fold(0, |sum, slot| sum.wrapping_add(self.epochs.of(usize::from(*slot)).load(Ordering::Relaxed)))
    }

    /// Has the programs forget what an operation makes wrong. The table was written before.
    pub(super) fn after(&self, op: &Op, before: Option<&abi::Endpoint>) {
        self.change(&forgets(op, before));
    }

    /// Has the programs forget all flows.
    pub(super) fn forget_all(&self) {
        self.change(&[ALL_FLOWS].into());
    }

    /// In this order: a flow that is being learnt from what the table said before sees the other generation, or ends
    /// with the epochs. In another order it would be learnt under the new numbers.
    fn change(&self, slots: &BTreeSet<u16>) {
        self.generation.of(GENERATION_AGENT).fetch_add(1, Ordering::SeqCst);
        for slot in slots {
            self.epochs.of(usize::from(*slot)).fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Prefix;
    use podwire_common::addr::{Addr, Be16, Mac};

    const UPLINK: u32 = 7;

    fn address(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn prefix(text: &str) -> Prefix {
        let network: ipnet::Ipv4Net = text.parse().unwrap();
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
        let uplink = abi::Uplink { ipv4: far, tunnel_address: far, mtu: 1500, reserved: 0 };
        let vtep = abi::Vtep { mac: Mac::default(), reserved: [0; 2] };
        let frontend = abi::Frontend { address: far, port: Be16::new(80), protocol: 6, reserved: 0 };
        let backend = abi::Backend { address: pod, port: Be16::new(80), reserved: [0; 2] };
        let guard = abi::Guard { paid: 0, cost: 1, credit: 1 };
        let region = |text| epoch::region(&address(text));
        let (known, new) = (Some(endpoint(4)), endpoint(5));
        let nothing: Vec<u16> = Vec::new();
        let table = [
            ("a new pod", Op::SetEndpoint(pod, new), None, vec![region("10.244.1.0")]),
            ("another pod", Op::SetEndpoint(pod, new), known, vec![epoch::endpoint(4)]),
            ("a pod removed", Op::RemoveEndpoint(pod), known, vec![epoch::endpoint(4)]),
            ("a pod removed twice", Op::RemoveEndpoint(pod), None, nothing.clone()),
            ("a node", Op::SetNode(prefix("10.244.2.0/24"), node), None, vec![region("10.244.2.0")]),
            (
                "a large node",
                Op::SetNode(prefix("10.244.2.0/23"), node),
                None,
                vec![region("10.244.2.9"), region("10.244.3.9")],
            ),
            ("a huge node", Op::SetNode(prefix("10.0.0.0/8"), node), None, vec![ALL_FLOWS]),
            (
                "a node's address",
                Op::SetNode(prefix("10.200.0.2/32"), node),
                None,
                vec![region("10.200.0.0")],
            ),
            ("a node removed", Op::RemoveNode(prefix("10.244.2.0/24")), None, vec![region("10.244.2.0")]),
            (
                "an exclusion",
                Op::SetNonMasquerade(prefix("192.0.2.0/24"), 1),
                None,
                vec![region("192.0.2.0")],
            ),
            ("no exclusion", Op::RemoveNonMasquerade(prefix("192.0.2.0/24")), None, nothing.clone()),
            ("an uplink", Op::SetUplink(UPLINK, uplink), None, vec![epoch::uplink(UPLINK)]),
            ("an uplink removed", Op::RemoveUplink(UPLINK), None, vec![epoch::uplink(UPLINK)]),
            ("a VTEP", Op::SetVtep(near, vtep), None, vec![epoch::node(&near)]),
            ("a VTEP removed", Op::RemoveVtep(near), None, vec![epoch::node(&near)]),
            ("a peer", Op::SetTunnelPeer(near, 1), None, nothing.clone()),
            ("a peer removed", Op::RemoveTunnelPeer(near), None, vec![epoch::node(&near)]),
            ("a hostPort", Op::SetFrontend(frontend, backend), None, nothing.clone()),
            ("a hostPort removed", Op::RemoveFrontend(frontend), None, nothing.clone()),
            ("a guard", Op::SetGuard(4, guard), None, nothing.clone()),
            ("a guard removed", Op::RemoveGuard(4), None, nothing.clone()),
        ];
        for (what, op, before, expected) in table {
            let slots: Vec<u16> = forgets(&op, before.as_ref()).into_iter().collect();
            let expected: Vec<u16> = BTreeSet::from_iter(expected).into_iter().collect();
            assert_eq!(slots, expected, "{what}");
        }
    }
}
