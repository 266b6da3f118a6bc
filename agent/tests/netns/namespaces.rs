//! The folders of an agent in one network namespace, used by an agent or a removal in another one.

use std::fs;
use std::path::PathBuf;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node};

use crate::footprint::Footprint;
use crate::reach;
use crate::sockets::wait_until;

#[test]
fn an_agent_in_another_namespace_touches_nothing() {
    let lab = Lab::builder().node_file().build().unwrap();
    let node = lab.node(0);
    let limit = json!({ "bandwidth": { "egressRate": 1_000_000_000 } });
    let pods = [node.add_pod("plain").unwrap(), node.add_pod_with("limited", &limit).unwrap()];
    let far = lab.node(1).add_pod("far").unwrap();
    let elsewhere = lab.add_namespace("elsewhere").unwrap();
    node.kill_agent().unwrap();
    let before = Footprint::of(node, &[&pods[0], &pods[1]]);
    let check_refused = |what: &str, refused: bool, said: &str| {
        let file = claim(node).display().to_string();
        assert!(
            refused && said.contains("another network namespace") && said.contains(&file),
            "{what}: {said}"
        );
        assert_eq!(Footprint::of(node, &[&pods[0], &pods[1]]).differences(&before), [""; 0], "{what}");
    };
    let ended = node.run_second_agent_in(&elsewhere, &[]).unwrap();
    check_refused("an agent", !ended.success(), &node.agent_log());
    let removal = node.uninstall_in(&elsewhere, &[]).unwrap();
    check_refused("a removal", !removal.status.success(), &String::from_utf8_lossy(&removal.stderr));
    // The agent in the right namespace finds everything as it was.
    node.start_agent().unwrap();
    for pod in &pods {
        reach(pod, &far);
        reach(&far, pod);
    }
    assert_eq!(Footprint::of(node, &[&pods[0], &pods[1]]).differences(&before), [""; 0]);
}

/// kind and k3d: a restarted node container has a new namespace in the same boot, and a new BPF
/// file system.
#[test]
fn pods_of_a_restarted_node_container_are_released() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pods = ["one", "two"].map(|name| node.add_pod(name).unwrap());
    let wanted = json!({ "ips": [pods[0].address()] });
    node.kill_agent().unwrap();
    change_claim(node, "namespace", json!(1));
    // The pins still exist, so the node has not restarted.
    let refused = format!("{:#}", node.start_agent().unwrap_err());
    assert!(refused.contains("another network namespace"), "{refused}");
    for pod in &pods {
        node.ip(&format!("link del {}", pod.host_interface())).unwrap();
    }
    fs::remove_dir_all(node.bpf_dir()).unwrap();
    node.start_agent().unwrap();
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), json!([]));
    let again = node.add_pod_with("again", &wanted).unwrap();
    reach(node, &again);
}

#[test]
fn a_namespace_of_before_the_boot_counts_no_more() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let gone = node.add_pod("gone").unwrap();
    node.kill_agent().unwrap();
    change_claim(node, "namespace", json!(1));
    change_claim(node, "boot", json!("another"));
    node.ip(&format!("link del {}", gone.host_interface())).unwrap();
    node.start_agent().unwrap();
    let released = || (node.map_dump(maps::ENDPOINTS).unwrap() == json!([])).then_some(());
    assert!(wait_until(released).is_some(), "{}", node.agent_log_tail(20));
    assert_ne!(read_claim(node)["namespace"], 1, "the folder is this namespace's now");
    // Do what an operator is told to do when a namespace is gone.
    node.kill_agent().unwrap();
    change_claim(node, "namespace", json!(1));
    fs::remove_file(claim(node)).unwrap();
    node.start_agent().unwrap();
}

fn claim(node: &Node) -> PathBuf {
    node.state_dir().join("network-namespace.json")
}

fn read_claim(node: &Node) -> Value {
    serde_json::from_slice(&fs::read(claim(node)).unwrap()).unwrap()
}

fn change_claim(node: &Node, key: &str, value: Value) {
    let mut found = read_claim(node);
    found[key] = value;
    fs::write(claim(node), found.to_string()).unwrap();
}
