//! What there is, and what changes.

use serde_json::json;

use crate::watching::{Watching, eventually, node, open, server};

/// How many times the whole list was asked for, by pages or as a stream.
fn lists(requests: &[String]) -> usize {
    let begins = |request: &&String| {
        request.contains("sendInitialEvents=true")
            || request.contains("limit=") && !request.contains("continue=")
    };
    requests.iter().filter(begins).count()
}

#[tokio::test]
async fn the_first_list_is_told_when_it_is_whole_streamed_or_page_by_page() {
    for streams in [true, false] {
        let server = server(1201);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server, None));
        let list = watching.list().await;
        assert_eq!((list.records.len(), list.problems.len()), (1201, 0));
        assert!(list.age.is_zero());
        let pages = server.requests().iter().filter(|request| request.contains("limit=")).count();
        assert_eq!(pages, if streams { 0 } else { 7 }, "{:#?}", server.requests());
        server.delete("node7");
        assert_eq!(watching.list().await.records.len(), 1200);
    }
}

#[tokio::test]
async fn nodes_that_come_change_and_go_are_told() {
    for streams in [true, false] {
        let server = server(2);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server, None));
        assert_eq!(watching.names().await, ["node1", "node2"]);
        server.put(node(3));
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
        let mut moved = node(2);
        moved["spec"] = json!({ "podCIDR": "10.99.0.0/24" });
        server.put(moved);
        let list = watching.list().await;
        assert_eq!(list.records[1].pod_networks, ["10.99.0.0/24".parse().unwrap()]);
        server.delete("node2");
        assert_eq!(watching.names().await, ["node1", "node3"]);
    }
}

#[tokio::test]
async fn what_does_not_matter_to_the_network_is_not_told() {
    let server = server(2);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    let mut alive = node(2);
    alive["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-11-02T00:00:00Z");
    alive["metadata"]["labels"]["team"] = json!("blue");
    server.put(alive);
    server.put(node(3));
    // The next that is told is the third node, and the second as it was.
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    assert!(watching.events.try_recv().is_err());
}

#[tokio::test]
async fn after_a_restart_of_the_server_the_watch_goes_on_where_it_was() {
    let server = server(2);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    server.stop();
    let trouble = watching.trouble().await;
    assert!(trouble.contains("127.0.0.1") && trouble.contains("refused"), "{trouble}");
    server.put(node(3));
    server.start().unwrap();
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    assert_eq!(lists(&server.requests()), 1, "{:#?}", server.requests());
}

#[tokio::test]
async fn that_the_list_is_good_again_is_told_though_nothing_has_changed() {
    let server = server(1);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    server.stop();
    watching.trouble().await;
    server.start().unwrap();
    let event = watching.next().await;
    assert!(matches!(event, podwire::daemon::Event::NodeListConfirmed), "{event:?}");
}

#[tokio::test]
async fn when_the_changes_since_are_forgotten_the_list_is_asked_for_anew() {
    for streams in [true, false] {
        let server = server(3);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server, None));
        watching.list().await;
        server.stop();
        server.delete("node2");
        server.put(node(4));
        server.forget_changes();
        server.start().unwrap();
        assert_eq!(watching.names().await, ["node1", "node3", "node4"]);
        server.put(node(5));
        assert_eq!(watching.names().await, ["node1", "node3", "node4", "node5"]);
    }
}

#[tokio::test]
async fn a_list_that_is_asked_for_anew_and_the_same_is_not_told() {
    let server = server(2);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    server.stop();
    server.forget_changes();
    server.start().unwrap();
    eventually("it is listed again", || lists(&server.requests()) == 2).await;
    server.put(node(3));
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
}

#[tokio::test]
async fn a_bookmark_is_where_the_watch_goes_on() {
    let server = server(2);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    // Others' changes: only a bookmark tells of them.
    server.forget_changes();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    server.stop();
    watching.trouble().await;
    server.start().unwrap();
    server.put(node(3));
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    assert_eq!(lists(&server.requests()), 1, "{:#?}", server.requests());
}

#[tokio::test]
async fn a_malformed_object_is_named_and_the_others_are_used() {
    let server = server(2);
    let mut bad = node(3);
    bad["spec"]["podCIDRs"] = json!(["10.34.0.0"]);
    server.put(bad);
    let mut worse = node(4);
    worse["status"] = json!("fine");
    server.put(worse);
    let mut watching = Watching::start(open(&server, None));
    let list = watching.list().await;
    assert_eq!(list.records.len(), 2);
    let said: Vec<_> = list.problems.iter().map(ToString::to_string).collect();
    assert!(said[0].contains("node node3") && said[0].contains("10.34.0.0"), "{said:?}");
    assert!(said[1].contains("node node4"), "{said:?}");

    let mut spoilt = node(2);
    spoilt["status"]["addresses"] = json!([{ "type": "InternalIP", "address": 7 }]);
    server.put(spoilt);
    let list = watching.list().await;
    assert_eq!((list.records.len(), list.problems.len()), (1, 3));
    server.put(node(2));
    server.put(node(3));
    server.delete("node4");
    let list = watching.until(|list| list.problems.is_empty()).await;
    assert_eq!(list.records.len(), 3);
}

#[tokio::test]
async fn many_changes_end_in_what_there_is() {
    let server = server(50);
    let mut watching = Watching::start(open(&server, None));
    watching.list().await;
    for round in 0..20 {
        for number in 1..=50 {
            let mut changed = node(number);
            changed["spec"]["unschedulable"] = json!(round % 2 == 0);
            server.put(changed);
        }
    }
    for number in 1..=49 {
        server.delete(&format!("node{number}"));
    }
    let list = watching.until(|list| list.records.len() == 1).await;
    assert_eq!(list.records[0].name, "node50");
    assert!(!list.records[0].cordoned);
}
