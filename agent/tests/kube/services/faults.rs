//! Faults of the API server and of the connection to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use podwire::events::{Event, Readiness};
use podwire::nodes;
use podwire::objects::Pace;
use podwire::objects::client::Server;
use podwire::services::api_server::Source;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use xtask::api_server::Fault;

use super::{FILE, PATIENCE, Watching, lists, names, service, slice, unready, with_services};
use crate::watching::{
    LOOPBACKS, OWN, by_kubeconfig, by_url, certificate_of, eventually, node, open, open_https, pace,
};

#[tokio::test]
async fn services_are_told_only_when_the_slices_are_there_too() {
    for kind in ["endpointslices", "services"] {
        let server = with_services(2);
        server.fail(Some(Fault::KindRefused(kind, 403)));
        let mut watching = Watching::start(open(&server));
        let trouble = watching.trouble().await;
        assert!(trouble.contains(kind) && trouble.contains("ClusterRole"), "{trouble}");
        eventually("the agent asks for both kinds again", || lists(&server) > 3).await;
        assert!(watching.events.try_recv().is_err(), "half a list was told");
        server.fail(None);
        let list = watching.list().await;
        assert_eq!((list.services.len(), list.slices.len()), (2, 2));
    }
}

#[tokio::test]
async fn after_a_restart_of_the_server_both_watches_go_on() {
    let server = with_services(3);
    // The server is back before the next changes are due.
    let slow = Pace { rest: Duration::from_secs(20), ..pace() };
    let mut watching = Watching::with(by_url(open(&server)), slow, tempfile::tempdir().unwrap());
    watching.list().await;
    let before = lists(&server);
    server.stop();
    watching.trouble().await;
    server.put(unready(2));
    server.delete_like(&service(3));
    server.start().unwrap();
    let (mut told, expected) = (BTreeSet::new(), BTreeSet::from(["web2/web2-x", "web3-"].map(str::to_owned)));
    loop {
        match watching.next().await {
            Event::ServicesChanged(changes) => told.extend(names(&changes)),
            // What has changed meanwhile comes before the state counts as current.
            Event::ServicesConfirmed => break,
            Event::ServicesUnusable(_) => {}
            event => panic!("{event:?}"),
        }
    }
    assert_eq!(told, expected);
    assert_eq!(lists(&server), before, "{:#?}", server.requests());
}

#[tokio::test]
async fn services_are_not_current_while_one_kind_is_lost() {
    let server = with_services(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.stop();
    watching.trouble().await;
    server.fail(Some(Fault::KindRefused("endpointslices", 500)));
    server.start().unwrap();
    server.put(service(3));
    loop {
        match watching.next().await {
            Event::ServicesChanged(changes) => break assert_eq!(names(&changes), ["web3"]),
            event => assert!(!matches!(event, Event::ServicesConfirmed), "without the slices"),
        }
    }
    tokio::time::sleep(10 * pace().doubt).await;
    while let Ok(event) = watching.events.try_recv() {
        assert!(!matches!(event, Event::ServicesConfirmed), "confirmed without the slices");
    }
    server.fail(None);
    while !matches!(watching.next().await, Event::ServicesConfirmed) {}
}

#[tokio::test]
async fn of_a_list_that_is_asked_for_anew_the_difference_is_told() {
    for streams in [true, false] {
        let server = with_services(30);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server));
        watching.list().await;
        let before = lists(&server);
        server.stop();
        server.delete_like(&service(2));
        server.put(unready(5));
        server.put(service(31));
        server.forget_changes();
        server.start().unwrap();
        watching.told(&["web2-", "web5/web5-x", "web31"]).await;
        assert!(lists(&server) >= before + 2, "{:#?}", server.requests());
    }
}

#[tokio::test]
async fn nodes_and_services_share_a_client_and_its_renewal() {
    let folder = tempfile::tempdir().unwrap();
    let (config, token) = (folder.path().join("config"), folder.path().join("token"));
    std::fs::write(&token, "first").unwrap();
    let certificate = certificate_of(LOOPBACKS[0]);
    let server = with_services(2);
    server.put(node(1));
    server.only_tokens(&["first"]);
    let address = open_https(&server, LOOPBACKS[0], certificate.clone());
    let access = by_kubeconfig(&config, address, &certificate, &token);
    let shared = Server::new(access, pace().silence, None).await.unwrap();
    let (sender, mut events) = mpsc::channel(64);
    let (_readiness, is_ready) = watch::channel(Readiness::Ready);
    let of_nodes = nodes::kube::Source {
        server: Arc::clone(&shared),
        node_name: OWN.into(),
        saved: folder.path().join("nodes.json"),
        pace: pace(),
        looks: Duration::from_secs(3600),
    };
    let of_services = Source { server: shared, saved: folder.path().join(FILE), pace: pace() };
    let nodes = tokio::spawn(of_nodes.watch(sender.clone(), is_ready));
    let services = tokio::spawn(of_services.watch(sender));
    let mut seen = BTreeMap::new();
    let mut wait_for = async |nodes: usize, slices: usize| {
        let seen_all = async {
            while seen.get("nodes") != Some(&nodes) || seen.get("slices") != Some(&slices) {
                match events.recv().await.unwrap() {
                    Event::Nodes(list) => drop(seen.insert("nodes", list.records.len())),
                    Event::Services(list) => drop(seen.insert("slices", list.slices.len())),
                    Event::ServicesChanged(changes) => {
                        *seen.get_mut("slices").unwrap() += changes.slices.len();
                    }
                    _ => {}
                }
            }
        };
        timeout(PATIENCE, seen_all).await.expect("not all was told");
    };
    wait_for(1, 2).await;
    server.only_tokens(&["second"]);
    // A connection that is open stays authenticated until it ends.
    server.stop();
    server.start().unwrap();
    std::fs::write(&token, "second").unwrap();
    server.put(node(2));
    server.put(slice(3));
    wait_for(2, 3).await;
    nodes.abort();
    services.abort();
}
