//! Lists of services, and changes to them.

use std::time::Duration;

use podwire::objects::Pace;
use serde_json::json;

use super::{Watching, names, service, slice, unready, with_services};
use crate::watching::{by_url, open, pace};

#[tokio::test]
async fn first_list_has_both_kinds_whole_streamed_or_paged() {
    for streams in [true, false] {
        let server = with_services(450);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server));
        let list = watching.list().await;
        assert_eq!((list.services.len(), list.slices.len(), list.problems.len()), (450, 450, 0));
        assert!(list.age.is_zero());
        let of_each = |path: &str| {
            let pages = server.requests().into_iter().filter(|request| request.contains("limit="));
            pages.filter(|request| request.contains(path)).count()
        };
        let pages = [of_each("/api/v1/services?"), of_each("/apis/discovery.k8s.io/v1/endpointslices?")];
        assert_eq!(pages, if streams { [0, 0] } else { [3, 3] }, "{:#?}", server.requests());
        server.put(unready(7));
        watching.told(&["web7/web7-x"]).await;
    }
}

#[tokio::test]
async fn only_what_has_changed_is_told() {
    let server = with_services(40);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.put(service(41));
    watching.told(&["web41"]).await;
    server.put(slice(41));
    watching.told(&["web41/web41-x"]).await;
    let mut moved = service(7);
    moved["spec"]["externalIPs"] = json!(["203.0.113.7"]);
    server.put(moved);
    let changes = watching.changes().await;
    let web7 = changes.services.values().next().unwrap().as_ref().unwrap();
    assert_eq!((names(&changes), web7.external_ips.len()), (vec!["web7".to_owned()], 1));
    server.delete_like(&slice(41));
    watching.told(&["web41/web41-x-"]).await;
    server.delete_like(&service(41));
    watching.told(&["web41-"]).await;
}

#[tokio::test]
async fn what_does_not_matter_to_services_is_not_told() {
    let server = with_services(3);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    let (mut labelled, mut touched) = (service(2), slice(2));
    labelled["metadata"]["labels"] = json!({ "team": "blue" });
    touched["metadata"]["annotations"] = json!({ "endpoints.kubernetes.io/last-change-trigger-time": "now" });
    server.put(labelled);
    server.put(touched);
    let mut headless = service(9);
    headless["spec"]["clusterIPs"] = json!(["None"]);
    server.put(headless);
    server.put(unready(3));
    watching.told(&["web3/web3-x"]).await;
    assert!(watching.events.try_recv().is_err());
}

#[tokio::test]
async fn objects_that_are_no_longer_served_are_told_as_gone() {
    let server = with_services(3);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    let mut external = service(1);
    external["spec"] = json!({ "type": "ExternalName", "externalName": "example.org" });
    server.put(external);
    watching.told(&["web1-"]).await;
    let mut given_away = slice(2);
    given_away["metadata"]["labels"]["kubernetes.io/service-name"] = json!("web3");
    server.put(given_away);
    watching.told(&["web2/web2-x-", "web3/web2-x"]).await;
}

#[tokio::test]
async fn changes_within_the_rest_are_told_together() {
    let server = with_services(20);
    let slow = Pace { rest: Duration::from_secs(2), ..pace() };
    let mut watching = Watching::with(by_url(open(&server)), slow, tempfile::tempdir().unwrap());
    watching.list().await;
    for number in 1..=20 {
        server.put(unready(number));
        server.put(slice(number));
        server.put(unready(number));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(watching.changes().await.slices.len(), 20);
    assert!(watching.events.try_recv().is_err());
}

#[tokio::test]
async fn a_malformed_object_is_named_until_it_is_right() {
    let server = with_services(2);
    let (mut bad_service, mut bad_slice) = (service(3), slice(2));
    bad_service["spec"]["clusterIPs"] = json!(["10.96.0.300"]);
    bad_slice["endpoints"][0]["addresses"] = json!(["nowhere"]);
    server.put(bad_service);
    let mut watching = Watching::start(open(&server));
    let list = watching.list().await;
    let said: Vec<_> = list.problems.iter().map(ToString::to_string).collect();
    assert!(list.services.len() == 2 && said[0].contains("service shop/web3"), "{said:?}");
    server.put(bad_slice);
    let changes = watching.changes().await;
    assert_eq!(names(&changes), ["web2/web2-x-"]);
    assert_eq!(changes.problems.unwrap().len(), 2);
    server.put(service(3));
    let changes = watching.changes().await;
    let problems = changes.problems.as_ref().unwrap();
    assert_eq!((names(&changes), problems.len()), (vec!["web3".to_owned()], 1));
    server.put(slice(2));
    let changes = watching.changes().await;
    assert_eq!((names(&changes), changes.problems), (vec!["web2/web2-x".to_owned()], Some(vec![])));
    server.put(unready(1));
    assert_eq!(watching.changes().await.problems, None);
}
