//! The saved services of an earlier agent, for an agent that starts while the API server is away.

use std::time::Duration;

use podwire::objects::Pace;
use xtask::api_server::Fault;

use super::{FILE, Watching, service, unready, with_services};
use crate::watching::{by_url, eventually, open, pace};

#[tokio::test]
async fn agent_that_starts_without_the_server_uses_saved_services() {
    let server = with_services(5);
    let address = open(&server);
    let mut watching = Watching::start(address);
    let first = watching.list().await;
    let saved = watching.folder.path().join(FILE);
    eventually("the services are saved", || saved.exists()).await;
    server.put(unready(1));
    let text = || std::fs::read_to_string(&saved).unwrap();
    eventually("the change is saved", || text().contains("\"ready\":false")).await;
    let folder = watching.end().await;
    server.stop();
    let mut watching = Watching::with(by_url(address), pace(), folder);
    watching.trouble().await;
    let list = watching.list().await;
    assert!(!list.age.is_zero(), "a saved list has an age");
    assert_eq!(list.services, first.services);
    assert_eq!((list.slices.len(), list.problems.len()), (5, 0));
    assert!(!list.slices[0].endpoints[0].is_ready);
    server.delete_like(&service(5));
    server.start().unwrap();
    let list = watching.list().await;
    assert!(list.age.is_zero());
    assert_eq!((list.services.len(), list.slices.len()), (4, 5));
}

#[tokio::test]
async fn a_server_that_hangs_is_not_waited_for_too_long() {
    let server = with_services(5);
    let address = open(&server);
    let mut watching = Watching::start(address);
    watching.list().await;
    let saved = watching.folder.path().join(FILE);
    eventually("the services are saved", || saved.exists()).await;
    let folder = watching.end().await;
    server.fail(Some(Fault::Hang));
    let impatient =
        Pace { patience: Duration::from_millis(100), silence: Duration::from_secs(3600), ..pace() };
    let mut watching = Watching::with(by_url(address), impatient, folder);
    let list = watching.list().await;
    assert_eq!((list.age.is_zero(), list.services.len()), (false, 5));
}
