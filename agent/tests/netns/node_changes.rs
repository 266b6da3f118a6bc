//! Changes of a cluster's nodes at the API server, and what an agent makes of them.

#![expect(clippy::disallowed_methods, reason = "a file's time is wall-clock time")]

use std::fs::File;
use std::time::{Duration, SystemTime};

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, traffic};

use crate::reach;
use crate::sockets::wait_until;
use crate::sweep::{comes, conditions, goes, metric};

const MEBIBYTE: u64 = 1 << 20;
const OWN_MISSING: &str = "own-node-missing";
const PROBLEM: &str = "node-problem";
const STALE: &str = "node-list-stale";

#[test]
fn node_made_anew_with_another_pod_cidr_is_reached_there() {
    let lab = Lab::builder().build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    let client = one.add_pod("client").unwrap();
    let old = two.add_pod("old").unwrap();
    reach(&client, &old);
    let api = lab.api_server().unwrap();
    let mut node = api.node("node2").unwrap();
    two.kill_agent().unwrap();
    api.delete("node2");
    routes_without(one, "10.244.2.0/24");
    node["metadata"].as_object_mut().unwrap().remove("uid");
    set_pod_cidr(&mut node, "10.244.7.0/24");
    api.put(node);
    routes_with(one, "10.244.7.0/24");
    two.start_agent().unwrap();
    let new = two.add_pod("new").unwrap();
    assert!(new.address().to_string().starts_with("10.244.7."), "{}", new.address());
    reach(&client, &new);
    reach(&new, &client);
    let known = dump(one, maps::NODES);
    assert!(!known.to_string().contains("10,244,2,0"), "the earlier podCIDR is still known: {known}");
}

#[test]
fn a_node_that_is_made_anew_between_two_looks_is_one_change() {
    let lab = Lab::builder().build().unwrap();
    let api = lab.api_server().unwrap();
    let mut node = api.node("node2").unwrap();
    node["metadata"]["uid"] = json!("another");
    set_pod_cidr(&mut node, "10.244.7.0/24");
    api.put(node);
    routes_with(lab.node(0), "10.244.7.0/24");
    routes_without(lab.node(0), "10.244.2.0/24");
}

#[test]
fn a_node_is_followed_to_another_address() {
    let lab = Lab::builder().build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    let (client, server) = (one.add_pod("client").unwrap(), two.add_pod("server").unwrap());
    reach(&client, &server);
    let stream = traffic::tcp_stream(&client, &server, server.address(), 8081).unwrap();
    stream.wait_for(MEBIBYTE).unwrap();
    two.ip("address del 10.200.0.2/24 dev eth0\naddress add 10.200.0.22/24 dev eth0\nroute replace default via 10.200.0.254\n").unwrap();
    let api = lab.api_server().unwrap();
    let mut node = api.node("node2").unwrap();
    node["status"]["addresses"][0]["address"] = json!("10.200.0.22");
    api.put(node);
    let is_peer = || dump(one, maps::TUNNEL_PEERS).to_string().contains("10,200,0,22]").then_some(());
    assert!(wait_until(is_peer).is_some(), "{}", one.agent_log_tail(20));
    let again = || traffic::tcp_exchange(&client, &server, server.address(), 8080, MEBIBYTE).ok();
    assert!(wait_until(again).is_some(), "{}", two.agent_log_tail(20));
    stream.wait_for(MEBIBYTE).unwrap();
    assert!(stream.finish().unwrap().bytes > 0);
    reach(&server, &client);
    traffic::tcp_exchange(one, &server, server.address(), 8080, MEBIBYTE).unwrap();
    assert!(
        !dump(one, maps::TUNNEL_PEERS).to_string().contains("10,200,0,2]"),
        "the earlier address is still a peer's"
    );
}

#[test]
fn a_pod_cidr_that_is_assigned_late_is_waited_for_quietly() {
    let lab = Lab::builder().nodes(2).agents(false).build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    let api = lab.api_server().unwrap();
    let whole = api.node("node2").unwrap();
    let mut early = whole.clone();
    early["spec"] = json!({});
    api.put(early);
    one.start_agent().unwrap();
    two.spawn_agent().unwrap();
    comes(two, OWN_MISSING, "this node, node2, has no network in spec.podCIDRs: waiting for it");
    let client = one.add_pod("client").unwrap();
    let refused = two.add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("spec.podCIDR"), "{refused}");
    assert_eq!(metric(one, "podwire_nodes_skipped{reason=\"no-pod-cidr\"}"), "1");
    assert_eq!(conditions(one), [""; 0]);

    api.put(whole);
    routes_with(one, "10.244.2.0/24");
    two.wait_ready().unwrap();
    assert_eq!(metric(one, "podwire_nodes_skipped{reason=\"no-pod-cidr\"}"), "0");
    reach(&client, &two.add_pod("server").unwrap());
}

#[test]
fn of_two_nodes_with_one_pod_cidr_the_first_by_name_keeps_it() {
    let lab = Lab::builder().nodes(3).agents(false).build().unwrap();
    lab.node(0).start_agent().unwrap();
    lab.node(1).start_agent().unwrap();
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    let api = lab.api_server().unwrap();
    let right = api.node("node3").unwrap();
    let mut wrong = right.clone();
    set_pod_cidr(&mut wrong, "10.244.2.0/24");
    api.put(wrong);
    let expected = "node node3 is skipped: its podCIDR 10.244.2.0/24 overlaps 10.244.2.0/24 of node node2";
    comes(lab.node(0), PROBLEM, expected);
    reach(&client, &server);
    api.put(right);
    routes_with(lab.node(0), "10.244.3.0/24");
    goes(lab.node(0), PROBLEM);
    lab.node(2).start_agent().unwrap();
    reach(&client, &lab.node(2).add_pod("third").unwrap());
    reach(&client, &server);
}

#[test]
fn pod_cidr_that_changes_its_node_always_has_one() {
    let lab = Lab::builder().nodes(3).agents(false).build().unwrap();
    let one = lab.node(0);
    one.start_agent().unwrap();
    lab.node(2).start_agent().unwrap();
    let client = one.add_pod("client").unwrap();
    // The node with this podCIDR is gone for good. Its successor has another name and the same
    // podCIDR.
    let api = lab.api_server().unwrap();
    let mut successor = api.node("node3").unwrap();
    set_pod_cidr(&mut successor, "10.244.2.0/24");
    api.put(successor);
    comes(one, PROBLEM, "node node3 is skipped: its podCIDR 10.244.2.0/24 overlaps");
    api.delete("node2");
    goes(one, PROBLEM);
    let successor = lab.node(2);
    let moved = || routes(successor).contains("10.244.2.1 ").then_some(());
    assert!(wait_until(moved).is_some(), "{}", successor.agent_log_tail(20));
    let server = successor.add_pod("server").unwrap();
    assert!(server.address().to_string().starts_with("10.244.2."), "{}", server.address());
    reach(&client, &server);
}

#[test]
fn a_cordoned_node_changes_nothing_for_its_pods() {
    let lab = Lab::builder().build().unwrap();
    let one = lab.node(0);
    let (client, server) = (one.add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    let before = (dump(one, maps::NODES), dump(one, maps::TUNNEL_PEERS), one.exec(&["ip", "route"]).unwrap());
    let api = lab.api_server().unwrap();
    let mut node = api.node("node2").unwrap();
    node["spec"]["unschedulable"] = json!(true);
    api.put(node);
    said(one, "INFO", "node node2 is cordoned: its pods keep their network");
    reach(&client, &server);
    assert_eq!(
        (dump(one, maps::NODES), dump(one, maps::TUNNEL_PEERS), one.exec(&["ip", "route"]).unwrap()),
        before
    );
    let mut node = api.node("node2").unwrap();
    node["spec"].as_object_mut().unwrap().remove("unschedulable");
    api.put(node);
    said(one, "INFO", "node node2 is no longer cordoned");
}

#[test]
fn deleted_nodes_pods_are_dropped_and_counted_until_it_is_back() {
    let lab = Lab::builder().build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    let (near, far) = (one.add_pod("near").unwrap(), two.add_pod("far").unwrap());
    let stream = traffic::tcp_stream(&far, &near, near.address(), 8080).unwrap();
    stream.wait_for(MEBIBYTE).unwrap();
    let api = lab.api_server().unwrap();
    let node = api.node("node2").unwrap();
    let dropped = || one.drops().unwrap().get("tunnel-peer-unknown").copied().unwrap_or_default();
    assert_eq!(dropped(), 0);
    api.delete("node2");
    routes_without(one, "10.244.2.0/24");
    // node2 still sends: its own agent keeps what it had.
    assert!(wait_until(|| (dropped() > 0).then_some(())).is_some(), "{:?}", one.drops());
    comes(two, OWN_MISSING, "this node, node2, is not in the node list");
    api.put(node);
    routes_with(one, "10.244.2.0/24");
    stream.wait_for(MEBIBYTE).unwrap();
    assert!(stream.finish().unwrap().bytes > 0);
    reach(&near, &far);
}

#[test]
fn a_list_without_this_node_takes_nothing_away() {
    // A file changes in one step. Watchers of an API server see nodes go one by one.
    let lab = Lab::builder().node_file().build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    let (client, server) = (one.add_pod("client").unwrap(), two.add_pod("server").unwrap());
    let before = dump(one, maps::NODES);
    let all = lab.node_list().unwrap();
    let mut none = all.clone();
    none["items"] = json!([]);
    lab.write_node_list(&none.to_string()).unwrap();
    for node in [one, two] {
        comes(node, OWN_MISSING, "is not in the node list");
    }
    reach(&client, &server);
    assert_eq!(dump(one, maps::NODES), before);
    lab.write_node_list(&all.to_string()).unwrap();
    // Both nodes come back, one after the other.
    let is_whole = || dump(one, maps::NODES) == before;
    let serves = || (metric(one, "podwire_ready") == "1" && is_whole()).then_some(());
    assert!(wait_until(serves).is_some(), "{}", one.agent_log_tail(20));
    reach(&one.add_pod("late").unwrap(), &server);
}

#[test]
fn a_pod_cidr_that_is_the_nodes_own_network_takes_nobody_off_it() {
    let lab = Lab::builder().build().unwrap();
    let one = lab.node(0);
    let api = lab.api_server().unwrap();
    let mut wrong = api.node("node2").unwrap();
    wrong["metadata"] = json!({ "name": "wrong" });
    set_addresses(&mut wrong, 9);
    for network in ["10.200.0.0/24", "10.200.0.0/16"] {
        let before = one.exec(&["ip", "route"]).unwrap();
        set_pod_cidr(&mut wrong, network);
        api.put(wrong.clone());
        comes(one, PROBLEM, &format!("its podCIDR {network} contains 10.200.0.0/24"));
        assert_eq!(one.exec(&["ip", "route"]).unwrap(), before);
        one.exec(&["ping", "-c", "1", "-W", "5", "10.200.0.254"]).unwrap();
    }
    assert_eq!(metric(one, "podwire_nodes_skipped{reason=\"contradiction\"}"), "1");
}

#[test]
fn nodes_of_another_operating_system_are_counted_and_no_more() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let one = lab.node(0);
    let api = lab.api_server().unwrap();
    let before = dump(one, maps::NODES);
    let mut windows = api.node("node1").unwrap();
    windows["metadata"] = json!({ "name": "win1", "labels": { "kubernetes.io/os": "windows" } });
    set_pod_cidr(&mut windows, "10.244.40.0/24");
    windows["status"]["nodeInfo"]["operatingSystem"] = json!("windows");
    set_addresses(&mut windows, 40);
    api.put(windows);
    let skipped = || metric(one, "podwire_nodes_skipped{reason=\"other-operating-system\"}");
    assert!(wait_until(|| (skipped() == "1").then_some(())).is_some());
    assert_eq!(dump(one, maps::NODES), before);
    assert_eq!(conditions(one), [""; 0]);
}

#[test]
fn without_the_api_server_all_goes_on_across_a_restart() {
    let lab = Lab::builder().nodes(3).agents(false).build().unwrap();
    let (one, two) = (lab.node(0), lab.node(1));
    one.start_agent().unwrap();
    two.start_agent().unwrap();
    let (client, server) = (one.add_pod("client").unwrap(), two.add_pod("server").unwrap());
    let kept = one.state_dir().join("nodes.json");
    assert!(wait_until(|| kept.exists().then_some(())).is_some());
    let api = lab.api_server().unwrap();
    assert_eq!(metric(one, "podwire_node_list_age_seconds"), "0");
    api.stop();
    comes(one, STALE, "the last good state stays");
    reach(&client, &server);
    one.add_pod("late").unwrap();

    let before = dump(one, maps::NODES);
    one.kill_agent().unwrap();
    // A node leaves while the agent is away.
    api.delete("node3");
    let hour = Duration::from_secs(3600);
    File::open(&kept).unwrap().set_modified(SystemTime::now() - hour).unwrap();
    one.start_agent().unwrap();
    comes(one, STALE, "the last good node list is used");
    let later = one.add_pod("later").unwrap();
    reach(&later, &server);
    reach(&client, &server);
    assert_eq!(dump(one, maps::NODES), before, "the agent removed an entry before it had the current list");
    let age = || metric(one, "podwire_node_list_age_seconds").parse::<u64>().unwrap();
    assert!(age() >= hour.as_secs(), "{}", age());

    api.start().unwrap();
    goes(one, STALE);
    let gone = || !dump(one, maps::NODES).to_string().contains("10,244,3,0");
    assert!(wait_until(|| gone().then_some(())).is_some(), "{}", one.agent_log_tail(20));
    assert_eq!(age(), 0);
    reach(&later, &server);
}

#[test]
fn without_server_and_kept_list_the_agent_serves_when_it_can() {
    let lab = Lab::builder().agents(false).build().unwrap();
    let node = lab.node(0);
    let api = lab.api_server().unwrap();
    api.stop();
    node.spawn_agent().unwrap();
    comes(node, "node-list-unread", "ask the API server http://127.0.0.1:7443");
    let refused = node.add_pod("early").unwrap_err().to_string();
    assert!(refused.contains("API server"), "{refused}");
    api.start().unwrap();
    node.wait_ready().unwrap();
    node.add_pod("late").unwrap();
}

#[test]
fn a_list_that_comes_again_and_changes_nothing_writes_no_map() {
    let lab = Lab::builder().build().unwrap();
    let one = lab.node(0);
    let changes = || metric(one, "podwire_operations_total").parse::<u64>().unwrap();
    let before = changes();
    assert!(before > 0, "changes are counted");
    let api = lab.api_server().unwrap();
    let lists = || api.requests().iter().filter(|request| request.contains("sendInitialEvents=true")).count();
    let listed = lists();
    api.stop();
    api.forget_changes();
    api.start().unwrap();
    // The agents of both nodes list again.
    assert!(wait_until(|| (lists() >= listed + 2).then_some(())).is_some(), "{:#?}", api.requests());
    // The agent sees the next change, and does nothing but this: a podCIDR, an address, a peer and
    // a route of each family.
    let mut third = api.node("node2").unwrap();
    third["metadata"] = json!({ "name": "node3" });
    set_pod_cidr(&mut third, "10.244.3.0/24");
    set_addresses(&mut third, 3);
    api.put(third);
    routes_with(one, "10.244.3.0/24");
    assert!(wait_until(|| (changes() >= before + 8).then_some(())).is_some(), "{}", one.agent_log());
    assert_eq!(changes(), before + 8, "{}", one.agent_log());
}

/// Sets the podCIDRs: `network`, which is IPv4, and the IPv6 network with the same numbers.
fn set_pod_cidr(node: &mut Value, network: &str) {
    let numbers: Vec<_> = network.split('.').collect();
    let ipv6 = format!("fd00:{}:{}:{}::/64", numbers[0], numbers[1], numbers[2]);
    node["spec"] = json!({ "podCIDR": network, "podCIDRs": [network, ipv6] });
}

/// Sets the InternalIPs, which end in this number.
fn set_addresses(node: &mut Value, number: u8) {
    node["status"]["addresses"][0]["address"] = json!(format!("10.200.0.{number}"));
    node["status"]["addresses"][1]["address"] = json!(format!("fd00:10:200::{number}"));
}

fn dump(node: &Node, map: &str) -> Value {
    node.map_dump(map).unwrap()
}

/// Waits until the node has a route to a podCIDR.
#[track_caller]
fn routes_with(node: &Node, network: &str) {
    let leads = || routes(node).contains(network).then_some(());
    assert!(wait_until(leads).is_some(), "no route to {network}: {}", node.agent_log_tail(20));
}

/// Waits until the node has no route to a podCIDR.
#[track_caller]
fn routes_without(node: &Node, network: &str) {
    let is_gone = || (!routes(node).contains(network)).then_some(());
    assert!(wait_until(is_gone).is_some(), "a route to {network}: {}", node.agent_log_tail(20));
}

fn routes(node: &Node) -> String {
    node.exec(&["ip", "route", "show", "table", "all"]).unwrap()
}

fn lines(node: &Node, level: &str, text: &str) -> Vec<String> {
    let log = node.agent_log();
    log.lines().filter(|line| line.contains(level) && line.contains(text)).map(str::to_owned).collect()
}

/// Waits for a line in the agent's log.
#[track_caller]
fn said(node: &Node, level: &str, text: &str) {
    let found = wait_until(|| (!lines(node, level, text).is_empty()).then_some(()));
    assert!(found.is_some(), "no {level} says {text:?}; the log ends\n{}", node.agent_log_tail(30));
}
