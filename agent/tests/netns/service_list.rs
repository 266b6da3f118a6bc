//! Services and EndpointSlices reach the agent, from the API server or from a file.

use std::path::Path;

use serde_json::{Value, json};
use xtask::lab::{Lab, Node};

use crate::idle_clients::get;
use crate::sockets::wait_until;
use crate::sweep::{comes, condition, goes, metric};

const STALE: &str = "service-list-stale";
const PROBLEM: &str = "service-problem";
/// The services of a running cluster: 15 that are served, and their endpoints.
const REAL: &str = include_str!("../../../testdata/dual-stack/services.json");
pub const SERVED: [&str; 2] = ["15", "45"];

fn items() -> Vec<Value> {
    let list: Value = serde_json::from_str(REAL).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Waits until an agent knows so many services and endpoints.
pub fn has(node: &Node, [services, endpoints]: [&str; 2]) {
    let numbers = || [metric(node, "podwire_services"), metric(node, "podwire_service_endpoints")];
    let as_expected = || (numbers() == [services, endpoints]).then_some(());
    assert!(wait_until(as_expected).is_some(), "{:?}\n{}", numbers(), node.agent_log_tail(20));
}

#[test]
fn services_come_from_the_api_server_across_a_restart() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--services", "on"]).build().unwrap();
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    has(node, ["0", "0"]);
    items().into_iter().for_each(|object| api.put(object));
    has(node, SERVED);
    // A headless service and one of another proxy are among them. They are no problem.
    assert_eq!([condition(node, STALE), condition(node, PROBLEM)], [0, 0]);

    let kind = |kind: &str| items().into_iter().find(|object| object["kind"] == kind).unwrap();
    let mut wrong = kind("Service");
    wrong["metadata"]["name"] = json!("wrong");
    wrong["spec"]["clusterIPs"] = json!(["10.96.0.300"]);
    api.put(wrong.clone());
    comes(node, PROBLEM, "service default/wrong is skipped: spec.clusterIPs: `10.96.0.300`");
    has(node, SERVED);
    wrong["spec"]["clusterIPs"] = json!(["10.96.0.30"]);
    api.put(wrong.clone());
    goes(node, PROBLEM);
    has(node, ["16", SERVED[1]]);
    api.delete_like(&wrong);
    has(node, SERVED);

    // The agent has saved the first list, which was empty, and saves again within a minute. Its
    // successor saves at once what it gets.
    node.restart_agent().unwrap();
    has(node, SERVED);
    let saved = node.state_dir().join("services.json");
    let holds_all = || std::fs::read_to_string(&saved).is_ok_and(|text| text.contains("web-sticky"));
    assert!(wait_until(|| holds_all().then_some(())).is_some(), "{}", node.agent_log_tail(20));
    api.stop();
    comes(node, STALE, "ask the API server");
    has(node, SERVED);
    node.restart_agent().unwrap();
    comes(node, STALE, "the last good services are used");
    has(node, SERVED);
    node.add_pod("new").unwrap();
    api.start().unwrap();
    goes(node, STALE);
    has(node, SERVED);
}

#[test]
fn without_the_option_no_service_is_asked_for() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    items().into_iter().for_each(|object| api.put(object));
    node.add_pod("pod").unwrap();
    let requests = api.requests();
    let asks = |request: &&String| request.contains("services") || request.contains("endpointslices");
    assert_eq!(requests.iter().find(asks), None, "{requests:#?}");
    assert!(requests.iter().any(|request| request.contains("/api/v1/nodes")));
    assert!(!get(node, "/metrics").contains("podwire_service"));
    assert!(!node.state_dir().join("services.json").exists());
}

#[test]
fn services_come_from_a_file_that_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("services.json");
    let write = |text: &str| replace(&file, text);
    write(REAL);
    let arguments = ["--services", "on", "--services-file", file.to_str().unwrap()];
    let lab = Lab::builder().nodes(1).node_file().agent_arguments(&arguments).build().unwrap();
    let node = lab.node(0);
    has(node, SERVED);
    write("{ half");
    comes(node, STALE, "decode the service list");
    has(node, SERVED);
    let mut fewer = items();
    fewer.retain(|object| object["metadata"]["name"].as_str().unwrap().starts_with("kube-dns"));
    fewer.push(json!({ "kind": "Pod", "metadata": { "namespace": "shop", "name": "web-0" } }));
    write(&json!({ "kind": "List", "items": fewer }).to_string());
    goes(node, STALE);
    comes(node, PROBLEM, "entry 3 is skipped: it is a Pod");
    has(node, ["1", "2"]);
}

fn replace(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, file).unwrap();
}
