//! What flannel leaves on a node that Podwire takes over.

use xtask::lab::reference::{self, Join, Masquerade, VXLAN};
use xtask::lab::{Lab, traffic};

use super::{add_pod, answers};
use crate::check::{Row, check};
use crate::sweep::comes;

#[test]
fn flannels_device_in_the_way_is_named_and_its_end_noticed() {
    let lab = Lab::builder().agents(false).build().unwrap();
    for node in lab.nodes() {
        reference::set_up_node(node, Join::Vxlan, Masquerade::Iptables).unwrap();
    }
    let (node, other) = (lab.node(0), lab.node(1));
    reference::add_peer(node, other, other.mac(VXLAN).unwrap()).unwrap();
    reference::add_peer(other, node, node.mac(VXLAN).unwrap()).unwrap();
    let none = serde_json::json!({});
    let [one, far] = [node, other].map(|node| add_pod(node, "before", &none).unwrap());
    node.spawn_agent().unwrap();
    let failed = comes(node, "reconcile-failed", "belongs to the VXLAN device flannel.1");
    assert!(failed.contains("`ip link delete flannel.1`"), "{failed}");
    let refused = node.add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("flannel.1"), "the runtime is told as well: {refused}");
    traffic::tcp_exchange(&one, &far, far.address, 8080, 1 << 20)
        .expect("flannel's own pods go on meanwhile");
    node.ip(&format!("link delete {VXLAN}\n")).unwrap();
    node.wait_ready().unwrap();
    let pod = node.add_pod("late").unwrap();
    traffic::tcp_exchange(&pod, node, node.address(), 8080, 1 << 20).unwrap();
}

#[test]
fn flannels_bridge_and_rules_on_the_node_break_nothing() {
    let lab = Lab::builder().agents(false).build().unwrap();
    for node in lab.nodes() {
        reference::set_up_node(node, Join::Routes, Masquerade::Iptables).unwrap();
        // The bridge has a carrier only with a pod.
        let before = add_pod(node, "before", &serde_json::json!({})).unwrap();
        assert!(answers(node, before.address));
        node.start_agent().unwrap();
        assert!(answers(node, before.address), "a pod from before the agent does not answer");
    }
    let runtime_config = serde_json::json!({ "ips": ["10.244.1.77/24"] });
    let pod = lab.node(0).add_pod_with("pod", &runtime_config).unwrap();
    let far = lab.node(1).add_pod_with("far", &serde_json::json!({ "ips": ["10.244.2.77/24"] })).unwrap();
    let near = lab.node(0).add_pod_with("near", &serde_json::json!({ "ips": ["10.244.1.78/24"] })).unwrap();
    let (ours, other) = (lab.node(0), lab.node(1));
    let from = (&*pod, pod.address());
    check(
        &lab,
        &[
            Row::new("pod to a pod of its node", from, (&near, near.address())),
            Row::new("pod to a pod of another node", from, (&far, far.address())),
            Row::new("pod to its node", from, (ours, ours.address())),
            Row::new("node to its pod", (ours, ours.address()), from),
            Row::new("pod to another node", from, (other, other.address())),
            Row::new("pod to the world", from, (lab.world(), lab.world_address())).seen_as(ours.address()),
        ],
    );
}

#[test]
fn printed_steps_remove_all_that_flannel_has_left_on_a_node() {
    for (masquerade, nftables) in [(Masquerade::Iptables, false), (Masquerade::Nftables, true)] {
        let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
        let node = lab.node(0);
        reference::set_up_node(node, Join::Vxlan, masquerade).unwrap();
        add_pod(node, "before", &serde_json::json!({})).unwrap();
        let shown = |command: &str| node.exec(&["sh", "-c", command]).unwrap();
        // Flannel's device and rules for IPv6.
        shown("ip link add flannel-v6.1 type vxlan id 1 dstport 8473");
        shown(match nftables {
            true => {
                "nft 'table ip6 flannel-ipv6 { chain forward { type filter hook forward priority 0; }; }'"
            }
            false => "ip6tables -N FLANNEL-FWD && ip6tables -A FORWARD -j FLANNEL-FWD",
        });
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
