//! The saved Node list of an earlier agent, for an agent that starts while the API server is away.

#![expect(clippy::disallowed_methods, reason = "a file's time is wall-clock time")]

use std::fs;
use std::time::Duration;

use podwire::events::Event;
use podwire::objects::Pace;
use serde_json::Value;
use tempfile::TempDir;
use xtask::api_server::{ApiServer, Fault};

use crate::servers::kinds;
use crate::watching::{Watching, by_url, eventually, node, open, pace, server};

/// Returns a server with three nodes, and the folder in which an earlier agent saved their list.
async fn kept() -> (ApiServer, std::net::SocketAddr, TempDir) {
    let server = server(3);
    let address = open(&server);
    let mut watching = Watching::start(address);
    watching.list().await;
    let cache = watching.cache();
    eventually("the list is kept", || cache.exists()).await;
    (server, address, watching.end().await)
}

#[tokio::test]
async fn agent_that_starts_without_the_server_uses_the_kept_list() {
    for kind in kinds() {
        let mut server = kind.serve(3).await;
        let mut watching = Watching::of(&server);
        watching.list().await;
        let cache = watching.cache();
        eventually("the list is kept", || cache.exists()).await;
        let folder = watching.end().await;
        server.stop().await;
        let mut watching = Watching::with(server.access(), server.pace(), folder);
        watching.trouble().await;
        let list = watching.list().await;
        assert_eq!(list.records.len(), 3);
        assert!(!list.age.is_zero(), "a kept list has an age");
        server.delete("node3").await;
        server.start().await;
        let list = watching.list().await;
        assert_eq!(list.records.len(), 2);
        assert!(list.age.is_zero());
    }
}

#[tokio::test]
async fn server_that_does_not_answer_is_not_waited_for_too_long() {
    let (server, address, folder) = kept().await;
    server.fail(Some(Fault::Hang));
    let impatient =
        Pace { patience: Duration::from_millis(100), silence: Duration::from_secs(3600), ..pace() };
    let mut watching = Watching::with(by_url(address), impatient, folder);
    let list = watching.list().await;
    assert!(!list.age.is_zero());
    assert_eq!(list.records.len(), 3);
}

#[tokio::test]
async fn with_a_server_that_answers_the_list_before_is_not_told() {
    let (server, address, folder) = kept().await;
    server.put(node(4));
    let mut watching = Watching::with(by_url(address), pace(), folder);
    let list = watching.list().await;
    assert!(list.age.is_zero());
    assert_eq!(list.records.len(), 4);
}

#[tokio::test]
async fn the_age_is_that_of_the_last_time_that_the_list_was_good() {
    let (server, address, folder) = kept().await;
    server.stop();
    let file = fs::File::open(folder.path().join("nodes.json")).unwrap();
    let hour = Duration::from_secs(3600);
    file.set_modified(std::time::SystemTime::now() - hour).unwrap();
    let mut watching = Watching::with(by_url(address), pace(), folder);
    let age = watching.list().await.age;
    assert!(age >= hour && age < 2 * hour, "{age:?}");
}

#[tokio::test]
async fn while_the_server_answers_the_age_is_none_and_then_it_grows() {
    let server = server(1);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    let cache = watching.cache();
    eventually("the list is kept", || cache.exists()).await;
    let an_hour_old = || {
        let before = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(&cache).unwrap().set_modified(before).unwrap();
    };
    let age = || fs::metadata(&cache).unwrap().modified().unwrap().elapsed().unwrap_or_default();
    an_hour_old();
    eventually("the agent renews the file's time", || age() < Duration::from_secs(1800)).await;
    server.stop();
    watching.trouble().await;
    an_hour_old();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(age() > Duration::from_secs(1800), "the agent renewed the file's time without an answer");
}

#[tokio::test]
async fn what_is_kept_is_a_node_list_that_anybody_reads() {
    let (_server, _, folder) = kept().await;
    let text = fs::read_to_string(folder.path().join("nodes.json")).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["kind"], "NodeList");
    assert_eq!(list["items"][1]["spec"]["podCIDRs"][0], "10.32.2.0/24");
}

#[tokio::test]
async fn what_has_changed_since_is_kept_too() {
    let server = server(1);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    let cache = watching.cache();
    eventually("the list is kept", || cache.exists()).await;
    server.put(node(2));
    eventually("the change is kept", || fs::read_to_string(&cache).unwrap().contains("node2")).await;
}

#[tokio::test]
async fn a_spoilt_file_is_as_none() {
    let (server, address, folder) = kept().await;
    server.stop();
    fs::write(folder.path().join("nodes.json"), "{").unwrap();
    let mut watching = Watching::with(by_url(address), pace(), folder);
    watching.trouble().await;
    server.start().unwrap();
    let event = watching.next().await;
    assert!(matches!(&event, Event::Nodes(list) if list.age.is_zero()), "{event:?}");
}
