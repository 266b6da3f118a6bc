//! The condition `NetworkUnavailable`, which a cloud provider sets.

use std::time::Duration;

use podwire::events::Readiness;
use serde_json::{Value, json};

use crate::servers::{Server, kinds};
use crate::watching::{
    LOOPBACKS, OWN, Watching, by_kubeconfig, certificate_of, eventually, node, open_https, pace, server,
};

/// Returns `node<number>` with the condition.
pub fn unavailable(number: u32) -> Value {
    let mut node = node(number);
    let condition = json!({ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated" });
    node["status"]["conditions"].as_array_mut().unwrap().push(condition);
    node
}

async fn condition(server: &Server, name: &str) -> String {
    let node = server.node(name).await.unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap().clone();
    let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable");
    found.map_or("absent".into(), |condition| condition["status"].as_str().unwrap().to_owned())
}

/// Returns the requests that write.
pub fn writes(server: &Server) -> Vec<String> {
    server.requests().into_iter().filter(|request| !request.starts_with("GET ")).collect()
}

#[tokio::test]
async fn it_is_set_to_false_when_the_agent_serves_and_only_this_nodes() {
    for kind in kinds() {
        let server = kind.serve(0).await;
        server.put(unavailable(1)).await;
        server.put(unavailable(2)).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        // An agent that does not serve yet writes nothing.
        server.put(node(3)).await;
        watching.list().await;
        assert_eq!(writes(&server), [""; 0]);
        watching.readiness.send_replace(Readiness::Ready);
        eventually("the condition is written", || !writes(&server).is_empty()).await;
        while condition(&server, OWN).await != "False" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(condition(&server, "node2").await, "True");
        assert_eq!(writes(&server), ["PATCH /api/v1/nodes/node1/status?"]);
        let written = server.node(OWN).await.unwrap();
        assert_eq!(written["status"]["conditions"][0]["type"], "Ready", "the other conditions stay");
        assert_eq!(written["status"]["addresses"], node(1)["status"]["addresses"]);
        assert_eq!(written["spec"]["podCIDR"], node(1)["spec"]["podCIDR"]);
    }
}

#[tokio::test]
async fn where_it_is_not_set_nothing_is_written() {
    for kind in kinds() {
        let server = kind.serve(2).await;
        // The node with the condition is another node, and the first of the list.
        server.put(unavailable(0)).await;
        let mut watching = Watching::of(&server);
        watching.readiness.send_replace(Readiness::Ready);
        watching.list().await;
        server.put(node(3)).await;
        watching.list().await;
        assert_eq!(writes(&server), [""; 0]);
        assert_eq!(condition(&server, OWN).await, "absent");
    }
}

#[tokio::test]
async fn it_is_set_with_the_token_that_there_is_now() {
    for loopback in LOOPBACKS {
        let folder = tempfile::tempdir().unwrap();
        let (config, token) = (folder.path().join("config"), folder.path().join("token"));
        std::fs::write(&token, "first").unwrap();
        let certificate = certificate_of(loopback);
        let server = server(1);
        server.only_tokens(&["first"]);
        let address = open_https(&server, loopback, certificate.clone());
        let access = by_kubeconfig(&config, address, &certificate, &token);
        let mut watching = Watching::with(access.clone(), pace(), folder);
        watching.list().await;
        std::fs::write(&token, "second").unwrap();
        server.only_tokens(&["second"]);
        watching.readiness.send_replace(Readiness::Ready);
        server.put(unavailable(1));
        let server = Server::Ours { server, access: Box::new(access), _folder: None };
        eventually("the condition is written", || !writes(&server).is_empty()).await;
        while condition(&server, OWN).await != "False" {
            tokio::time::sleep(Duration::from_millis(5)).await;
            assert_eq!(writes(&server).len(), 1, "the first write was refused");
        }
    }
}
