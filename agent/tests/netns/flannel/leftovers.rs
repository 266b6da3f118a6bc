//! What flannel leaves on a node that Podwire takes over.

use xtask::lab::reference::{self, Join, Masquerade, VXLAN, VXLAN6};
use xtask::lab::{Lab, traffic};

use super::{add_pod, announce, answers, macs};
use crate::check::{Row, check};
use crate::sweep::{comes, condition};

#[test]
fn flannels_device_in_the_way_is_named_and_its_end_noticed() {
    let lab = Lab::builder().agents(false).build().unwrap();
    for node in lab.nodes() {
        reference::set_up_node(node, Join::Vxlan, Masquerade::Iptables).unwrap();
    }
    let (node, other) = (lab.node(0), lab.node(1));
    reference::add_peer(node, other, &macs(other)).unwrap();
    reference::add_peer(other, node, &macs(node)).unwrap();
    announce(&lab, [node, other].map(|node| Some(macs(node)))).unwrap();
    let none = serde_json::json!({});
    let [one, far] = [node, other].map(|node| add_pod(node, "before", Join::Vxlan, &none).unwrap());
    node.spawn_agent().unwrap();
    let failed = comes(node, "reconcile-failed", "belongs to the VXLAN devices flannel.1 and flannel-v6.1");
    assert!(failed.contains("`ip link delete flannel.1` and `ip link delete flannel-v6.1`"), "{failed}");
    comes(node, "not-set-up", "flannel.1");
    let refused = node.add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("flannel.1"), "the runtime is told as well: {refused}");
    for address in &far.addresses {
        traffic::tcp_exchange(&one, &far, *address, 8080, 1 << 20)
            .expect("flannel's own pods go on meanwhile");
    }
    node.ip(&format!("link delete {VXLAN}\n")).unwrap();
    comes(node, "reconcile-failed", "belongs to the VXLAN device flannel-v6.1:");
    node.ip(&format!("link delete {VXLAN6}\n")).unwrap();
    node.wait_ready().unwrap();
    assert_eq!(["not-set-up", "reconcile-failed"].map(|name| condition(node, name)), [0; 2]);
    let pod = node.add_pod("late").unwrap();
    crate::reach(&pod, node);
}

#[test]
fn flannels_bridge_and_rules_on_the_node_break_nothing() {
    let lab = Lab::builder().agents(false).build().unwrap();
    for node in lab.nodes() {
        reference::set_up_node(node, Join::Routes, Masquerade::Iptables).unwrap();
        // The bridge has a carrier only with a pod.
        let before = add_pod(node, "before", Join::Routes, &serde_json::json!({})).unwrap();
        let all_answer = || before.addresses.iter().all(|address| answers(node, *address));
        assert!(all_answer());
        node.start_agent().unwrap();
        assert!(all_answer(), "a pod from before the agent does not answer");
    }
    let add_pod = |node: usize, name: &str, last: u8| {
        let number = node + 1;
        let ips = [format!("10.244.{number}.{last}/24"), format!("fd00:10:244:{number}::{last}/64")];
        lab.node(node).add_pod_with(name, &serde_json::json!({ "ips": ips })).unwrap()
    };
    let (pod, near, far) = (add_pod(0, "pod", 77), add_pod(0, "near", 78), add_pod(1, "far", 77));
    for family in [0, 1] {
        let [from, near, far] = [&pod, &near, &far].map(|pod| (&**pod, pod.addresses()[family]));
        let [ours, other] = [0, 1].map(|node| (&**lab.node(node), lab.node(node).addresses()[family]));
        let world = (lab.world(), lab.world_addresses()[family]);
        check(
            &lab,
            &[
                Row::new("pod to a pod of its node", from, near),
                Row::new("pod to a pod of another node", from, far),
                Row::new("pod to its node", from, ours),
                Row::new("node to its pod", ours, from),
                Row::new("pod to another node", from, other),
            ],
        );
        let to_world = Row::new("pod to the world", from, world).seen_as(ours.1);
        // The world's link takes more than the pods' links.
        check(&lab, &[if family == 0 { to_world } else { to_world.learns_mtu() }]);
    }
}

#[test]
fn printed_steps_remove_all_that_flannel_has_left_on_a_node() {
    for (masquerade, nftables) in [(Masquerade::Iptables, false), (Masquerade::Nftables, true)] {
        let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
        let node = lab.node(0);
        reference::set_up_node(node, Join::Vxlan, masquerade).unwrap();
        add_pod(node, "before", Join::Vxlan, &serde_json::json!({})).unwrap();
        let shown = |command: &str| node.exec(&["sh", "-c", command]).unwrap();
        let left = || {
            let all = shown("ip link; iptables-save; ip6tables-save; nft list ruleset");
            ["flannel.1", "flannel-v6", "flannel-ipv", "FLANNEL", "cni0"]
                .into_iter()
                .filter(|what| all.contains(what))
                .collect::<Vec<_>>()
        };
        assert_eq!(left().len(), 4, "{:?}", left());
        let conf = format!(
            r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","EnableNFTables":{nftables},"Backend":{{"Type":"vxlan"}}}}"#
        );
        let migrate =
            format!("echo '{conf}' | {} migrate flannel --net-conf -", env!("CARGO_BIN_EXE_podwire"));
        let printed = node.exec(&["sh", "-c", &migrate]).unwrap();
        let commands =
            |line: &&str| ["ip link", "iptables-", "nft "].iter().any(|word| line.starts_with(word));
        let lines = printed.lines().map(|line| line.trim_start_matches(['#', ' ']));
        let run: Vec<_> = lines.filter(commands).collect();
        assert_eq!(run.len(), 2, "{printed}");
        for command in run {
            node.exec(&["sh", "-c", command]).unwrap();
        }
        assert!(left().is_empty(), "{:?} is left", left());
    }
}
