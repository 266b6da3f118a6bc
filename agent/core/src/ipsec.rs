//! What the IPsec policies of the host (xfrm) require of pods' traffic. Pure.
//!
//! The programs' redirects bypass the kernel's policies. So packets that a policy may match take
//! the host stack, or the VXLAN device if the policy is about the nodes' own addresses. A policy
//! may match packets if the networks of its selector overlap those of the packets, in either order
//! and in any direction. Ports, marks and links are not considered.

use std::net::IpAddr;

use ipnet::IpNet;
use podwire_common::abi;

use crate::model::{Model, Node};

/// The moment at which the kernel applies a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Before a packet is received.
    In,
    /// Before a packet is sent.
    Out,
    /// Before a packet is forwarded.
    Forward,
}

/// A policy that blocks packets or requires IPsec. A policy that only lets packets pass is left
/// out: it requires nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// When the kernel applies the policy.
    pub direction: Direction,
    /// Source network of the packets.
    pub source: IpNet,
    /// Destination network of the packets.
    pub destination: IpNet,
}

impl Policy {
    /// Checks both networks of the selector. For each one that satisfies `here`, returns the other
    /// one.
    fn beyond(&self, here: impl Fn(&IpNet) -> bool) -> impl Iterator<Item = IpNet> {
        let ends = [(self.source, self.destination), (self.destination, self.source)];
        ends.into_iter().filter(move |(one, _)| here(one)).map(|(_, other)| other)
    }
}

/// Returns whether a policy may match packets between two networks.
fn may_match(policies: &[Policy], here: IpNet, there: IpNet) -> bool {
    policies
        .iter()
        .any(|policy| policy.beyond(|end| overlap(end, &here)).any(|beyond| overlap(&beyond, &there)))
}

/// Returns flags of another node: `NODE_IPSEC_*`. `ends`: the InternalIPs of both nodes between
/// which tunnel packets travel.
pub fn of_node(model: &Model, own: &Node, node: &Node, (here, there): (IpAddr, IpAddr)) -> u32 {
    let policies = &model.policies;
    if policies.is_empty() {
        return 0;
    }
    let tunnel = may_match(policies, model.present_address(here).into(), there.into());
    let mut theirs = node.addresses().map(IpNet::from).chain(node.pod_networks.iter().copied());
    let ours = &own.pod_networks;
    let pods = theirs.any(|there| ours.iter().any(|here| may_match(policies, *here, there)));
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    flag(abi::NODE_IPSEC_TUNNEL, tunnel) | flag(abi::NODE_IPSEC_PODS, pods)
}

/// Returns networks of the world with their flags (`NETWORK_*`): pods' packets to them have to take
/// the stack, or must not leave with this node's address.
pub fn of_world(model: &Model, own: &Node) -> Vec<(IpNet, u32)> {
    let is_pods = |end: &IpNet| own.pod_networks.iter().any(|network| overlap(end, network));
    let is_own = |end: &IpNet| own_addresses(model).any(|address| end.contains(&address));
    let mut networks = Vec::new();
    for policy in &model.policies {
        // The kernel checks only policies for outgoing packets against the address that SNAT gives.
        let is_past_snat =
            policy.direction == Direction::Out && !is_pods(&policy.source) && is_own(&policy.source);
        if is_past_snat {
            networks.push((policy.destination, abi::NETWORK_REFUSED));
        }
        let through_stack = policy.beyond(|end| is_pods(end) || is_own(end));
        networks.extend(through_stack.map(|network| (network, abi::NETWORK_THROUGH_STACK)));
    }
    networks
}

fn own_addresses(model: &Model) -> impl Iterator<Item = IpAddr> {
    let of_links = model.links.iter().flat_map(|link| &link.addresses);
    of_links.chain(&model.other_addresses).copied()
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node(number: u8) -> Node {
        Node {
            name: format!("node{number}"),
            uid: None,
            pod_networks: vec![
                net(&format!("10.244.{number}.0/24")),
                net(&format!("fd00:10:244:{number}::/64")),
            ],
            internal_addresses: vec![
                [10, 200, 0, number].into(),
                [10, 201, 0, number].into(),
                [0xfd00, 0x10, 0x200, 0, 0, 0, 0, number.into()].into(),
                [0xfd00, 0x10, 0x201, 0, 0, 0, 0, number.into()].into(),
            ],
            cordoned: false,
            vtep_macs: std::collections::BTreeMap::new(),
        }
    }

    fn model(direction: Direction, source: &str, destination: &str) -> Model {
        let mut model = Model::new(Mode::Vxlan, None);
        let own = ["10.200.0.1", "192.168.7.1", "fd00:10:200::1", "2001:db8:7::1"];
        model.other_addresses = own.map(|address| address.parse().unwrap()).into();
        model.policies = vec![Policy { direction, source: net(source), destination: net(destination) }];
        model
    }

    #[test]
    fn policy_concerns_the_tunnel_the_pods_or_both() {
        const TUNNEL: u32 = abi::NODE_IPSEC_TUNNEL;
        const PODS: u32 = abi::NODE_IPSEC_PODS;
        let ipv4 = [
            ("10.200.0.1/32", "10.200.0.2/32", TUNNEL),
            ("10.200.0.2/32", "10.200.0.1/32", TUNNEL),
            ("10.200.0.0/24", "10.200.0.0/24", TUNNEL),
            ("10.200.0.1/32", "10.200.0.3/32", 0),
            ("10.200.0.9/32", "10.200.0.2/32", 0),
            ("10.244.0.0/16", "10.244.0.0/16", PODS),
            ("10.244.1.7/32", "10.244.2.0/24", PODS),
            ("10.244.1.0/24", "10.201.0.2/32", PODS),
            ("10.244.1.0/24", "10.244.3.0/24", 0),
            ("0.0.0.0/0", "0.0.0.0/0", TUNNEL | PODS),
            ("10.200.0.1/32", "0.0.0.0/0", TUNNEL),
            ("198.51.100.0/24", "203.0.113.0/24", 0),
            ("fd00:10:200::1/128", "fd00:10:200::2/128", 0),
            ("fd00:10:244:1::/64", "fd00:10:244:2::/64", PODS),
            ("::/0", "::/0", PODS),
        ];
        let ipv6 = [
            ("fd00:10:200::1/128", "fd00:10:200::2/128", TUNNEL),
            ("fd00:10:200::2/128", "fd00:10:200::1/128", TUNNEL),
            ("fd00:10:200::/64", "fd00:10:200::/64", TUNNEL),
            ("fd00:10:200::1/128", "fd00:10:200::3/128", 0),
            ("fd00:10:200::9/128", "fd00:10:200::2/128", 0),
            ("fd00:10:244::/48", "fd00:10:244::/48", PODS),
            ("fd00:10:244:1::7/128", "fd00:10:244:2::/64", PODS),
            ("fd00:10:244:1::/64", "fd00:10:201::2/128", PODS),
            ("fd00:10:244:1::/64", "fd00:10:244:3::/64", 0),
            ("::/0", "::/0", TUNNEL | PODS),
            ("fd00:10:200::1/128", "::/0", TUNNEL),
            ("2001:db8::/64", "2001:db8:1::/64", 0),
            ("10.200.0.1/32", "10.200.0.2/32", 0),
            ("10.244.1.0/24", "10.244.2.0/24", PODS),
            ("0.0.0.0/0", "0.0.0.0/0", PODS),
        ];
        let tunnels = [["10.200.0.1", "10.200.0.2"], ["fd00:10:200::1", "fd00:10:200::2"]];
        for (table, tunnel) in [ipv4, ipv6].into_iter().zip(tunnels) {
            let ends = tunnel.map(|end| end.parse().unwrap()).into();
            for (source, destination, expected) in table {
                for direction in [Direction::In, Direction::Out, Direction::Forward] {
                    let model = model(direction, source, destination);
                    let found = of_node(&model, &node(1), &node(2), ends);
                    assert_eq!(found, expected, "{tunnel:?} {direction:?} {source} {destination}");
                }
            }
        }
    }

    #[test]
    fn policy_about_the_world_concerns_pods_or_what_snat_gives() {
        const STACK: u32 = abi::NETWORK_THROUGH_STACK;
        const REFUSED: u32 = abi::NETWORK_REFUSED;
        let (far, far6) = ("203.0.113.0/24", "2001:db8:9::/64");
        let table: [(Direction, &str, &str, &[u32]); 17] = [
            (Direction::Out, "10.244.0.0/16", far, &[STACK]),
            (Direction::Forward, far, "10.244.1.0/24", &[STACK]),
            (Direction::Out, "0.0.0.0/0", far, &[STACK]),
            (Direction::Out, "10.200.0.1/32", far, &[REFUSED, STACK]),
            (Direction::Out, "192.168.7.0/24", far, &[REFUSED, STACK]),
            (Direction::In, far, "10.200.0.1/32", &[STACK]),
            (Direction::Out, "10.244.2.0/24", far, &[]),
            (Direction::Out, "198.51.100.1/32", far, &[]),
            (Direction::Out, "fd00:10:244::/48", far6, &[STACK]),
            (Direction::Forward, far6, "fd00:10:244:1::/64", &[STACK]),
            (Direction::Out, "::/0", far6, &[STACK]),
            (Direction::Out, "fd00:10:200::1/128", far6, &[REFUSED, STACK]),
            (Direction::Out, "2001:db8:7::/64", far6, &[REFUSED, STACK]),
            (Direction::In, far6, "fd00:10:200::1/128", &[STACK]),
            (Direction::Forward, far6, "2001:db8:7::1/128", &[STACK]),
            (Direction::Out, "fd00:10:244:2::/64", far6, &[]),
            (Direction::Out, "2001:db8:8::1/128", far6, &[]),
        ];
        for (direction, source, destination, flags) in table {
            let found = of_world(&model(direction, source, destination), &node(1));
            let far = if source == far6 || destination == far6 { far6 } else { far };
            let expected: Vec<_> = flags.iter().map(|flag| (net(far), *flag)).collect();
            assert_eq!(found, expected, "{direction:?} {source} {destination}");
        }
    }
}
