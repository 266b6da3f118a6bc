//! The condition `NetworkUnavailable`, which a cloud provider sets.

use podwire::daemon::Readiness;
use serde_json::{Value, json};
use xtask::api_server::ApiServer;

use crate::watching::{OWN, Watching, eventually, node, open, server};

fn unavailable(number: u32) -> Value {
    let mut node = node(number);
    let condition = json!({ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" });
    node["status"]["conditions"].as_array_mut().unwrap().push(condition);
    node
}

fn condition(server: &ApiServer, name: &str) -> String {
    let node = server.node(name).unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap().clone();
    let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
    found.map_or("absent".into(), |condition| condition["status"].as_str().unwrap().to_owned())
}

fn writes(server: &ApiServer) -> Vec<String> {
    server.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect()
}

#[tokio::test]
async fn it_is_set_to_false_when_the_agent_serves_and_only_this_nodes() {
    let server = server(0);
    server.put(unavailable(1));
    server.put(unavailable(2));
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    // Who does not serve says nothing.
    server.put(node(3));
    watching.list().await;
    assert_eq!(writes(&server), [""; 0]);
    watching.readiness.send_replace(Readiness::Ready);
    eventually("the condition is false", || condition(&server, OWN) == "False").await;
    assert_eq!(condition(&server, "node2"), "True");
    assert_eq!(writes(&server), ["PATCH /api/v1/nodes/node1/status?"]);
    let ready = &server.node(OWN).unwrap()["status"]["conditions"][0];
    assert_eq!(ready["type"], "Ready", "the other conditions stay");
}

#[tokio::test]
async fn where_it_is_not_set_nothing_is_written() {
    let server = server(2);
    let mut watching = Watching::start(open(&server, None));
    watching.readiness.send_replace(Readiness::Ready);
    watching.list().await;
    server.put(node(3));
    watching.list().await;
    assert_eq!(writes(&server), [""; 0]);
    assert_eq!(condition(&server, OWN), "absent");
}
