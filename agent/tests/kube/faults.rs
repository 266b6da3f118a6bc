//! Faults of the API server and of the connection to it.

use std::time::Duration;

use podwire::events::Event;
use podwire::objects::Pace;
use xtask::api_server::Fault;

use crate::watching::{Watching, by_url, eventually, node, open, pace, server};

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_asked_again() {
    let server = server(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.fail(Some(Fault::Hang));
    server.put(node(3));
    watching.trouble().await;
    server.fail(None);
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
}

#[tokio::test]
async fn server_that_hangs_from_the_start_is_given_up_and_asked_again() {
    let server = server(2);
    server.fail(Some(Fault::Hang));
    let mut watching = Watching::start(open(&server));
    watching.trouble().await;
    server.fail(None);
    assert_eq!(watching.names().await, ["node1", "node2"]);
}

#[tokio::test]
async fn a_server_that_has_nothing_to_say_is_no_trouble() {
    let server = server(2);
    // Some servers send no bookmark while no node changes.
    server.bookmark_every(Duration::from_secs(3600));
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    let asked = server.requests().len();
    eventually("the watch is resumed three times", || server.requests().len() >= asked + 3).await;
    server.put(node(3));
    let event = watching.next().await;
    assert!(matches!(&event, Event::Nodes(list) if list.records.len() == 3), "{event:?}");
}

#[tokio::test]
async fn half_a_list_is_never_told() {
    for streams in [true, false] {
        // The cut is in the first object, in the middle of the list, or shortly before its end.
        for cut in [100, 20_000, 50_000] {
            let server = server(120);
            server.stream_lists(streams);
            server.fail(Some(Fault::CutAfter(cut)));
            let mut watching = Watching::start(open(&server));
            eventually("the agent asks again", || server.requests().len() > 1).await;
            while let Ok(event) = watching.events.try_recv() {
                let is_list = matches!(event, Event::Nodes(_));
                assert!(!is_list, "a list, though the answer was cut after {cut} bytes");
            }
            // The agent must also drop the objects of the cut list that it did receive.
            server.delete("node1");
            server.fail(None);
            assert_eq!(watching.list().await.records.len(), 119, "cut after {cut} bytes");
        }
    }
}

#[tokio::test]
async fn a_change_whose_line_is_cut_is_not_lost() {
    let server = server(2);
    let address = open(&server);
    let mut watching = Watching::start(address);
    watching.list().await;
    server.stop();
    watching.trouble().await;
    // The resumed watch receives half of the line about the new node.
    server.fail(Some(Fault::CutAfter(150)));
    server.start().unwrap();
    server.put(node(3));
    let asked = server.requests().len();
    eventually("the agent asks twice", || server.requests().len() > asked + 1).await;
    server.fail(None);
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
}

#[tokio::test]
async fn a_slow_server_is_waited_for_as_long_as_it_sends() {
    for streams in [true, false] {
        let server = server(40);
        server.stream_lists(streams);
        // The whole answer takes longer than `Pace::silence`.
        server.fail(Some(Fault::Slow(500, Duration::from_millis(40))));
        let mut watching = Watching::start(open(&server));
        assert_eq!(watching.list().await.records.len(), 40);
    }
}

#[tokio::test]
async fn pages_that_expire_begin_anew() {
    let server = server(500);
    server.stream_lists(false);
    server.fail(Some(Fault::PagesExpire));
    let mut watching = Watching::start(open(&server));
    let firsts = || {
        server
            .requests()
            .iter()
            .filter(|request| request.contains("limit=") && !request.contains("continue="))
            .count()
    };
    eventually("the agent begins again with the first page", || firsts() > 1).await;
    server.fail(None);
    assert_eq!(watching.list().await.records.len(), 500);
}

#[tokio::test]
async fn what_the_server_refuses_is_said_with_what_to_do() {
    for (code, hint) in [(403, "ClusterRole"), (500, "500"), (503, "503"), (429, "429")] {
        let server = server(1);
        server.fail(Some(Fault::Status(code)));
        let address = open(&server);
        let mut watching = Watching::start(address);
        let trouble = watching.trouble().await;
        assert!(trouble.contains(hint) && trouble.contains(&address.to_string()), "{code}: {trouble}");
        server.fail(None);
        assert_eq!(watching.names().await, ["node1"]);
    }
}

#[tokio::test]
async fn the_same_trouble_is_told_once() {
    let server = server(1);
    server.fail(Some(Fault::Status(503)));
    let mut watching = Watching::start(open(&server));
    watching.trouble().await;
    let asked = server.requests().len();
    eventually("the agent asks again", || server.requests().len() > asked + 1).await;
    assert!(watching.events.try_recv().is_err());
    server.fail(None);
    assert_eq!(watching.names().await, ["node1"]);
}

#[tokio::test]
async fn between_attempts_there_is_a_pause() {
    let server = server(1);
    server.fail(Some(Fault::Status(503)));
    let address = open(&server);
    let patient = Pace { pause: Duration::from_secs(30), ..pace() };
    let mut watching = Watching::with(by_url(address), patient, tempfile::tempdir().unwrap());
    watching.trouble().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = server.requests().len();
    assert!(asked < 10, "asked {asked} times within a second");
}

#[tokio::test]
async fn changes_meanwhile_are_told_together() {
    let server = server(1);
    let address = open(&server);
    let slow = Pace { rest: Duration::from_secs(2), ..pace() };
    let mut watching = Watching::with(by_url(address), slow, tempfile::tempdir().unwrap());
    watching.list().await;
    for number in 2..=20 {
        server.put(node(number));
        // Put the nodes one after the other, as they join a cluster.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(watching.list().await.records.len(), 20);
}

#[tokio::test]
async fn watches_that_end_at_once_are_not_asked_for_without_end() {
    for streams in [true, false] {
        let server = server(2);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server));
        watching.list().await;
        server.fail(Some(Fault::WatchesEnd));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = server.requests().len();
        assert!(asked < 100, "asked {asked} times within a second");
        server.fail(None);
        server.put(node(3));
        assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
    }
}

#[tokio::test]
async fn an_answer_that_turns_out_an_error_confirms_nothing() {
    let server = server(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.stop();
    watching.trouble().await;
    server.fail(Some(Fault::WatchesFail(500)));
    let asked = server.requests().len();
    server.start().unwrap();
    eventually("the agent asks three times", || server.requests().len() >= asked + 3).await;
    while let Ok(event) = watching.events.try_recv() {
        assert!(!matches!(event, Event::NodeListConfirmed), "confirmed by a watch that failed");
    }
    server.fail(None);
    while !matches!(watching.next().await, Event::NodeListConfirmed) {}
}

#[tokio::test]
async fn half_a_list_confirms_nothing() {
    for (streams, fault) in [(false, Fault::PagesExpire), (true, Fault::CutAfter(20_000))] {
        let server = server(500);
        server.stream_lists(streams);
        let mut watching = Watching::start(open(&server));
        watching.list().await;
        server.stop();
        watching.trouble().await;
        server.forget_changes();
        server.fail(Some(fault));
        let asked = server.requests().len();
        server.start().unwrap();
        eventually("the agent asks four times", || server.requests().len() >= asked + 4).await;
        while let Ok(event) = watching.events.try_recv() {
            assert!(!matches!(event, Event::NodeListConfirmed), "confirmed by half a list");
        }
        server.fail(None);
        while !matches!(watching.next().await, Event::NodeListConfirmed) {}
    }
}

#[tokio::test]
async fn the_beginning_of_a_list_confirms_nothing() {
    for streams in [true, false] {
        let server = server(100);
        server.stream_lists(streams);
        let calm = Pace { rest: Duration::from_millis(200), ..pace() };
        let access = by_url(open(&server));
        let mut watching = Watching::with(access, calm, tempfile::tempdir().unwrap());
        watching.list().await;
        server.stop();
        watching.trouble().await;
        server.delete("node1");
        server.forget_changes();
        server.fail(Some(Fault::Slow(1_000, Duration::from_millis(20))));
        server.start().unwrap();
        assert_news_comes_first(&mut watching).await;
    }
}

#[tokio::test]
async fn a_list_that_is_about_to_be_told_is_not_confirmed_before() {
    let server = server(2);
    let slow = Pace { rest: Duration::from_secs(2), ..pace() };
    let mut watching = Watching::with(by_url(open(&server)), slow, tempfile::tempdir().unwrap());
    watching.list().await;
    server.stop();
    watching.trouble().await;
    server.put(node(3));
    server.forget_changes();
    server.start().unwrap();
    assert_news_comes_first(&mut watching).await;
}

/// Asserts that the source sends a new list before it confirms the earlier one, which is stale.
async fn assert_news_comes_first(watching: &mut Watching) {
    loop {
        match watching.next().await {
            Event::Nodes(_) => return,
            event => assert!(!matches!(event, Event::NodeListConfirmed), "the stale list was confirmed"),
        }
    }
}

#[tokio::test]
async fn a_version_that_is_refused_is_not_asked_for_without_end() {
    let server = server(2);
    let mut watching = Watching::start(open(&server));
    watching.list().await;
    server.stop();
    server.fail(Some(Fault::VersionsRefused(410)));
    server.start().unwrap();
    server.put(node(3));
    assert_eq!(watching.names().await, ["node1", "node2", "node3"]);
}
