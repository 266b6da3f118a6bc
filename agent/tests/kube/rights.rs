//! What the agent's account may do at a cluster's own API server, with the manifest's rights.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use xtask::envtest::Binaries;

use crate::cluster::Cluster;
use crate::watching::{OWN, Watching, node, pace};

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

#[tokio::test]
async fn nodes_are_refused_until_the_role_is_bound() {
    let Some(binaries) = Binaries::from_environment().unwrap() else { return };
    let cluster = Cluster::start(binaries).await;
    cluster.put(&node(1)).await;
    let mut watching = Watching::with(cluster.access(), pace(), tempfile::tempdir().unwrap());
    let trouble = watching.trouble().await;
    assert!(trouble.contains("403") || trouble.contains("forbidden"), "{trouble}");
    assert!(trouble.contains("ClusterRole"), "{trouble}");
    cluster.bind_role().await;
    assert_eq!(watching.names().await, ["node1"]);
}

#[tokio::test]
async fn a_nodes_spec_cannot_be_written_and_no_other_object() {
    let Some(binaries) = Binaries::from_environment().unwrap() else { return };
    let cluster = Cluster::start(binaries).await;
    cluster.bind_role().await;
    cluster.put(&node(1)).await;
    let path = format!("/api/v1/nodes/{OWN}");
    let status = format!("{path}/status");
    let labels = json!({ "metadata": { "labels": { "team": "red" } } });
    let cordon = json!({ "spec": { "unschedulable": true } });
    let condition =
        json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] } });
    let [events, elsewhere] = ["default", "kube-system"]
        .map(|namespace| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"));
    let attempts: [(Method, &str, &str, &Value, StatusCode); 13] = [
        (Method::PATCH, &path, MERGE, &labels, StatusCode::FORBIDDEN),
        (Method::PATCH, &path, MERGE, &cordon, StatusCode::FORBIDDEN),
        (Method::PATCH, &path, STRATEGIC, &condition, StatusCode::FORBIDDEN),
        (Method::PUT, &path, "application/json", &node(1), StatusCode::FORBIDDEN),
        (Method::PUT, &status, "application/json", &node(1), StatusCode::FORBIDDEN),
        (Method::DELETE, &path, MERGE, &json!({}), StatusCode::FORBIDDEN),
        (Method::POST, "/api/v1/nodes", "application/json", &node(2), StatusCode::FORBIDDEN),
        (Method::GET, "/api/v1/pods", "application/json", &json!({}), StatusCode::FORBIDDEN),
        (Method::GET, &events, "application/json", &json!({}), StatusCode::FORBIDDEN),
        (Method::DELETE, &events, "application/json", &json!({}), StatusCode::FORBIDDEN),
        (Method::POST, &elsewhere, "application/json", &json!({}), StatusCode::FORBIDDEN),
        // The right is there, and the API server refuses what is no Event.
        (Method::POST, &events, "application/json", &json!({}), StatusCode::UNPROCESSABLE_ENTITY),
        (Method::PATCH, &status, STRATEGIC, &condition, StatusCode::OK),
    ];
    for (method, path, kind, body, expected) in attempts {
        let said = cluster.answer_to_agent(method.clone(), path, kind, body).await;
        assert_eq!(said, expected, "{method} {path} {body}");
    }
    // A patch of the status cannot change the spec. It can change labels: only the admission policy
    // refuses that.
    cluster.answer_to_agent(Method::PATCH, &status, STRATEGIC, &cordon).await;
    assert_eq!(cluster.node(OWN).await.unwrap()["spec"]["unschedulable"], Value::Null);
}
