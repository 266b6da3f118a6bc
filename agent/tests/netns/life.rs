//! The data path without its agent: the agent is killed, restarted or away.

use podwire_common::names::maps;
use serde_json::Value;
use xtask::lab::{CniCall, Lab, Mode, Node, is_soak, traffic};

use crate::reach;

const MEBIBYTE: u64 = 1 << 20;
/// The maps that an agent writes. A restarted agent must write the same.
const CONFIGURED: [&str; 4] = [maps::ENDPOINTS, maps::NODES, maps::TUNNEL_PEERS, maps::LINKS];

#[test]
fn a_transfer_goes_on_while_the_agents_are_killed_and_come_back() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let [client, near] = ["client", "near"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let before = lab.nodes().iter().map(configured).collect::<Vec<_>>();
        let streams = [
            traffic::tcp_stream(&client, &near, near.address(), 8080).unwrap(),
            traffic::tcp_stream(&client, &far, far.address(), 8080).unwrap(),
            traffic::tcp_stream(&client, lab.world(), lab.world_address(), 8080).unwrap(),
            traffic::tcp_stream(lab.node(0), &far, far.address(), 8081).unwrap(),
        ];
        let go_on = || streams.iter().for_each(|stream| stream.wait_for(4 * MEBIBYTE).unwrap());
        let rounds = if is_soak() { 50 } else { 2 };
        for _ in 0..rounds {
            lab.nodes().iter().for_each(|node| node.kill_agent().unwrap());
            go_on();
            lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
            go_on();
        }
        for stream in streams {
            assert!(stream.finish().unwrap().bytes > 0);
        }
        let after = lab.nodes().iter().map(configured).collect::<Vec<_>>();
        assert_eq!(before, after, "{mode:?}");
        // The agent serves ADD, and the address that it gives belongs to no other pod.
        let late = lab.node(0).add_pod("late").unwrap();
        assert!(![client.address(), near.address()].contains(&late.address()));
        reach(&late, &far);
        reach(&late, &client);
    }
}

#[test]
fn an_agent_that_is_stopped_leaves_the_data_path_in_place() {
    let lab = Lab::builder().build().unwrap();
    let (client, far) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("far").unwrap());
    lab.nodes().iter().for_each(|node| node.stop_agent().unwrap());
    reach(&client, &far);
    traffic::tcp_exchange(&client, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
    lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
    reach(&client, &far);
}

#[test]
fn without_an_agent_pods_can_be_deleted_but_not_added() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let [going, staying] = ["going", "staying"].map(|name| node.add_pod(name).unwrap());
    let address = going.address();
    node.kill_agent().unwrap();
    going.delete().unwrap();
    lab.add_namespace("node1-new").unwrap();
    let refused = node.cni_call("ADD", "new", &serde_json::json!({})).run().unwrap();
    // "Try again later" (CNI specification, error codes).
    assert!(!refused.success && refused.answer["code"] == 11, "{refused:?}");
    node.start_agent().unwrap();
    // The address of the deleted pod is free again: the next ADD that asks for it gets it.
    let wanted = serde_json::json!({ "ips": [format!("{address}/24")] });
    let again = node.add_pod_with("again", &wanted).unwrap();
    assert_eq!(again.address(), address);
    reach(&again, &staying);
    let mut check = repeated(again.call(), "CHECK");
    check.config["prevResult"] = again.result().clone();
    let checked = check.run().unwrap();
    assert!(checked.success, "CHECK of a sound pod failed: {checked:?}");
}

#[test]
fn pod_keeps_its_address_over_a_restart_and_another_add() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    node.restart_agent().unwrap();
    let endpoints = node.map_dump(maps::ENDPOINTS).unwrap();
    assert_eq!(endpoints.as_array().unwrap().len(), pod.addresses().len());
    let deleted = repeated(pod.call(), "DEL");
    // A runtime repeats DEL until it succeeds, and then once more.
    assert!(deleted.run().unwrap().success);
    assert!(deleted.run().unwrap().success);
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), serde_json::json!([]));
}

/// Returns another command for the pod of an ADD.
fn repeated(added: &CniCall, command: &str) -> CniCall {
    let mut call = added.clone();
    call.command = command.to_owned();
    call
}

fn configured(node: &Node) -> Vec<(&'static str, Vec<String>)> {
    CONFIGURED.map(|map| (map, sorted(node.map_dump(map).unwrap()))).to_vec()
}

/// Returns the entries in a fixed order: a hash map has none.
fn sorted(dump: Value) -> Vec<String> {
    let mut entries: Vec<String> = dump.as_array().unwrap().iter().map(Value::to_string).collect();
    entries.sort();
    entries
}
