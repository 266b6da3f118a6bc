//! Changes of the other nodes from one node list to the next. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::Node;

/// A node that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// `None`: the node has joined.
    pub before: Option<&'a Node>,
    /// `None`: the node has left.
    pub now: Option<&'a Node>,
}

/// Returns the nodes that differ: first those that have left, then the others, each by name.
pub fn changes<'a>(before: &'a BTreeMap<String, Node>, now: &'a BTreeMap<String, Node>) -> Vec<Change<'a>> {
    let left = before.iter().filter(|(name, _)| !now.contains_key(*name));
    let left = left.map(|(_, node)| Change { before: Some(node), now: None });
    let there = now.values().map(|node| Change { before: before.get(&node.name), now: Some(node) });
    left.chain(there.filter(|change| change.before != change.now)).collect()
}

impl Change<'_> {
    /// Returns the node's name.
    pub fn name(&self) -> &str {
        self.now.or(self.before).map_or("", |node| &node.name)
    }
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match (self.before, self.now) {
            (None, Some(now)) => {
                write!(f, "node {name} has joined: podCIDR {}, InternalIP {}", networks(now), addresses(now))
            }
            (Some(before), None) => write!(
                f,
                "node {name} has left (podCIDR {}, InternalIP {}): its pods can no longer be reached, and their packets are dropped",
                networks(before),
                addresses(before)
            ),
            (Some(before), Some(now)) => write_difference(f, before, now),
            (None, None) => Ok(()),
        }
    }
}

fn write_difference(f: &mut fmt::Formatter<'_>, before: &Node, now: &Node) -> fmt::Result {
    write!(f, "node {}", now.name)?;
    let mut separator = " ";
    let mut say = |what: String| {
        write!(f, "{separator}{what}")?;
        separator = ", ";
        Ok(())
    };
    if before.uid != now.uid {
        say("was created again".into())?;
    }
    if before.pod_networks != now.pod_networks {
        say(format!("has podCIDR {} in place of {}", networks(now), networks(before)))?;
    }
    if before.internal_addresses != now.internal_addresses {
        say(format!("has InternalIP {} in place of {}", addresses(now), addresses(before)))?;
    }
    if before.vtep_macs != now.vtep_macs {
        let macs: Vec<_> = now.vtep_macs.values().map(|mac| format!("{mac:?}")).collect();
        say(match macs.is_empty() {
            false => format!("accepts frames for {} only (flannel's annotation)", macs.join(" and ")),
            true => "is no longer announced by flannel".into(),
        })?;
    }
    match (before.cordoned, now.cordoned) {
        (false, true) => say("is cordoned: its pods keep their network".into()),
        (true, false) => say("is no longer cordoned".into()),
        _ => Ok(()),
    }
}

fn networks(node: &Node) -> String {
    listed(&node.pod_networks)
}

fn addresses(node: &Node) -> String {
    listed(&node.internal_addresses)
}

fn listed(all: &[impl ToString]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, uid: &str, pod_network: &str, address: &str) -> Node {
        Node {
            name: name.into(),
            uid: Some(uid.into()),
            pod_networks: vec![pod_network.parse().unwrap()],
            internal_addresses: vec![address.parse().unwrap()],
            cordoned: false,
            vtep_macs: BTreeMap::new(),
        }
    }

    fn check(before: &[Node], now: &[Node], said: &[&str]) {
        let by_name = |nodes: &[Node]| -> BTreeMap<_, _> {
            nodes.iter().map(|node| (node.name.clone(), node.clone())).collect()
        };
        let (before, now) = (by_name(before), by_name(now));
        let changes: Vec<_> = changes(&before, &now).iter().map(ToString::to_string).collect();
        assert_eq!(changes, said);
    }

    #[test]
    fn each_change_is_one_line() {
        let one = node("node2", "a", "10.244.2.0/24", "10.200.0.2");
        let same = node("node3", "c", "10.244.3.0/24", "10.200.0.3");
        check(&[one.clone(), same.clone()], &[one.clone(), same.clone()], &[]);
        check(
            &[],
            std::slice::from_ref(&one),
            &["node node2 has joined: podCIDR 10.244.2.0/24, InternalIP 10.200.0.2"],
        );
        check(
            &[one.clone(), same.clone()],
            std::slice::from_ref(&same),
            &[
                "node node2 has left (podCIDR 10.244.2.0/24, InternalIP 10.200.0.2): its pods can no longer be reached, and their packets are dropped",
            ],
        );
        check(
            std::slice::from_ref(&one),
            &[node("node2", "b", "10.244.7.0/24", "10.200.0.7")],
            &[
                "node node2 was created again, has podCIDR 10.244.7.0/24 in place of 10.244.2.0/24, has InternalIP 10.200.0.7 in place of 10.200.0.2",
            ],
        );
        let cordoned = Node { cordoned: true, ..one.clone() };
        check(
            std::slice::from_ref(&one),
            std::slice::from_ref(&cordoned),
            &["node node2 is cordoned: its pods keep their network"],
        );
        check(&[cordoned], &[one], &["node node2 is no longer cordoned"]);
    }
}
