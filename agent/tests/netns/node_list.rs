//! The Node list changes under running agents, for better and for worse.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, traffic};

use crate::idle_clients::get;
use crate::reach;
use crate::sweep::{comes, condition, goes};

const PATIENCE: Duration = Duration::from_secs(60);
const MEBIBYTE: u64 = 1 << 20;
const STALE: &str = "node-list-stale";

#[test]
fn a_malformed_entry_is_named_and_the_rest_works() {
    let lab = Lab::builder().build().unwrap();
    let good = lab.node_list().unwrap();
    for (name, change) in [
        ("no-network", json!({ "spec": { "podCIDR": "10.244.300.0/24", "podCIDRs": ["10.244.300.0/24"] } })),
        (
            "overlapping",
            json!({ "spec": { "podCIDR": "10.244.1.128/25", "podCIDRs": ["10.244.1.128/25"] },
                                "status": { "addresses": [{ "type": "InternalIP", "address": "10.200.0.9" }] } }),
        ),
        (
            "no-address-at-all",
            json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "?" }] } }),
        ),
    ] {
        let mut list = good.clone();
        let mut entry = good["items"][1].clone();
        entry["metadata"]["name"] = json!(name);
        for (key, value) in change.as_object().unwrap() {
            entry[key] = value.clone();
        }
        list["items"].as_array_mut().unwrap().push(entry);
        lab.write_node_list(&list.to_string()).unwrap();
        for node in lab.nodes() {
            comes(node, "node-problem", name);
        }
    }
    // The nodes serve pods as before.
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    reach(&client, &server);
}

#[test]
fn a_list_that_does_not_decode_keeps_the_last_good_state() {
    let lab = Lab::builder().node_file().build().unwrap();
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    let before = lab.node(0).map_dump(maps::NODES).unwrap();
    let good = lab.node_list().unwrap().to_string();
    for broken in [&good[..good.len() / 2], "", "{}", "kind: Secret"] {
        goes(lab.node(0), STALE);
        lab.write_node_list(broken).unwrap();
        comes(lab.node(0), STALE, "the last good state stays");
        assert_eq!(lab.node(0).map_dump(maps::NODES).unwrap(), before);
        reach(&client, &server);
        lab.write_node_list(&good).unwrap();
    }
    lab.node(0).add_pod("late").unwrap();
}

#[test]
fn a_list_that_cannot_be_read_keeps_nobody_waiting() {
    let lab = Lab::builder().nodes(1).node_file().build().unwrap();
    let (node, good) = (lab.node(0), lab.node_list().unwrap().to_string());
    let file = file_of(node);
    let beside = file.with_extension("new");
    assert!(Command::new("mkfifo").arg(&beside).status().unwrap().success());
    fs::rename(&beside, &file).unwrap();
    is_refused(node, "no regular file");
    fs::File::create(&beside).unwrap().set_len(100_000_000).unwrap();
    fs::rename(&beside, &file).unwrap();
    is_refused(node, "100000000 bytes");
    lab.write_node_list(&good).unwrap();
    node.add_pod("last").unwrap();
}

#[test]
fn a_hostile_list_of_40_mb_takes_little_memory() {
    let lab = Lab::builder().nodes(1).node_file().build().unwrap();
    let (node, good) = (lab.node(0), lab.node_list().unwrap().to_string());
    lab.write_node_list(&format!("kind: List\nitems:\n{}", "- a: [1, 2, 3]\n".repeat(2_500_000))).unwrap();
    is_refused(node, "more than 20000 entries");
    let status = fs::read_to_string(format!("/proc/{}/status", node.agent_pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 300 << 10, "the agent has used {peak} kB");
    lab.write_node_list(&good).unwrap();
    node.add_pod("last").unwrap();
}

#[test]
fn a_pod_cidr_without_room_for_pods_is_named() {
    let lab = Lab::builder().nodes(1).node_file().agents(false).build().unwrap();
    let node = lab.node(0);
    let mut list = lab.node_list().unwrap();
    list["items"][0]["spec"] = json!({ "podCIDR": "10.244.1.0/31", "podCIDRs": ["10.244.1.0/31"] });
    lab.write_node_list(&list.to_string()).unwrap();
    node.start_agent().unwrap();
    let refused = node.add_pod("pod").unwrap_err().to_string();
    assert!(refused.contains("10.244.1.0/31 has no room for pods"), "{refused}");
    comes(node, "no-room-for-pods", "10.244.1.0/31");
    // A near miss: one address is room.
    list["items"][0]["spec"] = json!({ "podCIDR": "10.244.1.0/30", "podCIDRs": ["10.244.1.0/30"] });
    lab.write_node_list(&list.to_string()).unwrap();
    goes(node, "no-room-for-pods");
    node.add_pod("only").unwrap();
    assert_eq!(condition(node, "no-room-for-pods"), 0);
}

#[test]
fn joining_node_is_reached_and_leaving_one_is_forgotten() {
    let lab = Lab::builder().nodes(3).agents(false).build().unwrap();
    let all = lab.node_list().unwrap();
    let mut two = all.clone();
    two["items"].as_array_mut().unwrap().pop();
    lab.write_node_list(&two.to_string()).unwrap();
    lab.node(0).start_agent().unwrap();
    let client = lab.node(0).add_pod("client").unwrap();
    let nodes = || lab.node(0).map_dump(maps::NODES).unwrap();
    let before = nodes();

    lab.write_node_list(&all.to_string()).unwrap();
    // node3 has two entries of each family: its podCIDR and its address.
    eventually("node3 is in NODES", || entries(&nodes()) == entries(&before) + 4, lab.node(0));
    lab.node(2).start_agent().unwrap();
    let server = lab.node(2).add_pod("server").unwrap();
    reach(&client, &server);
    reach(lab.node(0), &server);

    lab.write_node_list(&two.to_string()).unwrap();
    eventually("node3 has left NODES", || nodes() == before, lab.node(0));
    let routes = lab.node(0).exec(&["ip", "route"]).unwrap();
    assert!(!routes.contains("10.244.3.0/24"), "{routes}");
}

#[test]
fn pods_go_on_when_their_nodes_network_changes_and_it_is_said() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let old = node.add_pod("old").unwrap();
    let mut list = lab.node_list().unwrap();
    list["items"][0]["spec"] =
        json!({ "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24", "fd00:10:244:9::/64"] });
    lab.write_node_list(&list.to_string()).unwrap();
    let told = comes(node, "pods-outside-pod-cidr", "10.244.9.0/24");
    assert!(told.contains(&old.address().to_string()), "{told}");

    reach(&old, node);
    traffic::tcp_exchange(&old, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
    let new = node.add_pod("new").unwrap();
    assert!(new.address().to_string().starts_with("10.244.9."), "{}", new.address());
    reach(&old, &new);
    let far = lab.node(1).add_pod("far").unwrap();
    reach(&new, &far);
    old.delete().unwrap();
    goes(node, "pods-outside-pod-cidr");
}

fn entries(dump: &Value) -> usize {
    dump.as_array().unwrap().len()
}

/// Returns the file of a lab's list.
fn file_of(node: &Node) -> PathBuf {
    node.state_dir().ancestors().nth(2).unwrap().join("nodes.json")
}

/// Asserts that the agent does not use the list and still answers.
fn is_refused(node: &Node, why: &str) {
    comes(node, STALE, why);
    node.add_pod(&format!("beside-{}", why.split(' ').next().unwrap())).unwrap();
    assert!(get(node, "/healthz").starts_with("HTTP/1.1 200"));
}

/// Waits until an agent has done something by itself.
fn eventually(what: &str, holds: impl Fn() -> bool, node: &Node) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "never: {what}; the log ends\n{}", node.agent_log_tail(20));
        std::thread::sleep(Duration::from_millis(10));
    }
}
