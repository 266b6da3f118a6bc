//! Lists of nodes and changes to them.

use serde_json::json;

use crate::servers::{Kind, kinds};
use crate::watching::{Watching, eventually, node, open, server};

/// Counts how often the whole list was requested, in pages or as a stream.
fn lists(requests: &[String]) -> usize {
    let begins = |request: &&String| {
        request.contains("sendInitialEvents=true")
            || request.contains("limit=") && !request.contains("continue=")
    };
    requests.iter().filter(begins).count()
}

#[tokio::test]
async fn first_list_is_told_when_it_is_whole_streamed_or_paged() {
    for kind in kinds() {
        let server = kind.clone().serve(450).await;
        let mut watching = Watching::of(&server);
        let list = watching.list().await;
        assert_eq!((list.records.len(), list.problems.len()), (450, 0));
        assert!(list.age.is_zero());
        let pages = server.requests().iter().filter(|request| request.contains("limit=")).count();
        let as_asked = match kind {
            Kind::Streams | Kind::Ipv6 => pages == 0,
            Kind::Pages => pages == 3,
            // A cluster's own API server does one of the two, depending on its release.
            Kind::Cluster(_) => pages == 0 || pages == 3,
        };
        assert!(as_asked, "{:#?}", server.requests());
        server.delete("node7").await;
        assert_eq!(watching.list().await.records.len(), 449);
    }
}

#[tokio::test]
async fn nodes_that_come_change_and_go_are_told() {
    for kind in kinds() {
        let server = kind.serve(2).await;
        let mut watching = Watching::of(&server);
        assert_eq!(watching.names().await, ["node1", "node2"]);
        let mut late = node(3);
        late["spec"] = json!({});
        server.put(late).await;
        let list = watching.list().await;
        assert_eq!(list.records[2].name, "node3");
        assert_eq!(list.records[2].pod_networks, []);
        server.put(node(3)).await;
        let list = watching.list().await;
        assert_eq!(list.records[2].pod_networks, ["10.32.3.0/24".parse().unwrap()]);

        let mut moved = node(2);
        moved["status"]["addresses"][0]["address"] = json!("10.190.7.7");
        server.put(moved).await;
        let list = watching.list().await;
        assert_eq!(list.records[1].internal_addresses, ["10.190.7.7".parse::<std::net::IpAddr>().unwrap()]);
        server.delete("node2").await;
        assert_eq!(watching.names().await, ["node1", "node3"]);
        let mut another = node(2);
        another["spec"] = json!({ "podCIDR": "10.99.0.0/24" });
        server.put(another).await;
        let list = watching.list().await;
        assert_eq!(list.records[1].pod_networks, ["10.99.0.0/24".parse().unwrap()]);
    }
}

#[tokio::test]
async fn zone_of_a_node_is_told_and_kept() {
    for kind in kinds() {
        let mut server = kind.serve(1).await;
        let mut watching = Watching::of(&server);
        assert_eq!(watching.list().await.records[0].zone, None);
        let mut labelled = node(1);
        for zone in ["zone-a", "zone-b"] {
            labelled["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone);
            server.put(labelled.clone()).await;
            assert_eq!(watching.list().await.records[0].zone.as_deref(), Some(zone));
        }
        let cache = watching.cache();
        eventually("the zone is kept", || {
            std::fs::read_to_string(&cache).is_ok_and(|text| text.contains("zone-b"))
        })
        .await;
        let folder = watching.end().await;
        server.stop().await;
        let mut watching = Watching::with(server.access(), server.pace(), folder);
        let list = watching.list().await;
        assert_eq!((list.age.is_zero(), list.records[0].zone.as_deref()), (false, Some("zone-b")));
    }
}

#[tokio::test]
async fn what_does_not_matter_to_the_network_is_not_told() {
    for kind in kinds() {
        let server = kind.serve(2).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        let mut alive = node(2);
        alive["status"]["conditions"][0]["lastHeartbeatTime"] = json!("2026-11-02T00:00:00Z");
        alive["metadata"]["labels"]["team"] = json!("blue");
        server.put(alive).await;
        server.put(node(3)).await;
        // The next list has the third node. The second node is as before, so no list was sent for
        // it.
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
        assert!(watching.events.try_recv().is_err());
    }
}

#[tokio::test]
async fn after_a_restart_of_the_server_the_watch_goes_on_where_it_was() {
    for kind in kinds() {
        let mut server = kind.serve(2).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        let before = lists(&server.requests());
        server.stop().await;
        // The first error may be that a connection has ended.
        while !watching.trouble().await.contains("refused") {}
        server.put(node(3)).await;
        server.start().await;
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
        assert_eq!(lists(&server.requests()), before, "{:#?}", server.requests());
    }
}

#[tokio::test]
async fn list_that_is_good_again_is_told_though_nothing_changed() {
    for kind in kinds() {
        let mut server = kind.serve(1).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        server.stop().await;
        watching.trouble().await;
        server.start().await;
        let event = watching.next().await;
        assert!(matches!(event, podwire::events::Event::NodeListConfirmed), "{event:?}");
    }
}

#[tokio::test]
async fn list_is_asked_for_anew_when_its_changes_are_forgotten() {
    for kind in kinds() {
        let mut server = kind.serve(3).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        server.stop().await;
        server.delete("node2").await;
        server.put(node(4)).await;
        server.forget_changes().await;
        server.start().await;
        assert_eq!(watching.names().await, ["node1", "node3", "node4"]);
        server.put(node(5)).await;
        assert_eq!(watching.names().await, ["node1", "node3", "node4", "node5"]);
    }
}

#[tokio::test]
async fn a_server_that_no_longer_streams_lists_is_asked_for_pages() {
    let server = server(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.stop();
    server.put(node(3));
    server.forget_changes();
    server.stream_lists(false);
    server.start().unwrap();
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
}

#[tokio::test]
async fn a_list_that_is_asked_for_anew_and_the_same_is_not_told() {
    for kind in kinds() {
        let mut server = kind.serve(2).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        let before = lists(&server.requests());
        server.stop().await;
        server.forget_changes().await;
        server.start().await;
        eventually("the agent lists again", || lists(&server.requests()) > before).await;
        server.put(node(3)).await;
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    }
}

#[tokio::test]
async fn a_bookmark_is_where_the_watch_goes_on() {
    let server = server(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    // `forget_changes` raises the version. Only a bookmark tells the agent the new version.
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
    let mut watching = Watching::start(open(&server));
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
    for kind in kinds() {
        let server = kind.serve(20).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        for round in 0..10 {
            for number in 1..=20 {
                let mut changed = node(number);
                changed["spec"]["unschedulable"] = json!(round % 2 == 0);
                server.put(changed).await;
            }
        }
        for number in 1..=19 {
            server.delete(&format!("node{number}")).await;
        }
        let list = watching.until(|list| list.records.len() == 1).await;
        assert_eq!(list.records[0].name, "node20");
        assert!(!list.records[0].cordoned);
    }
}
