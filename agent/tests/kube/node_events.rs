//! Kubernetes Events about the conditions of this node.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use podwire::conditions::{ConditionName, Conditions};
use podwire::events::Event;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use xtask::api_server::Fault;

use crate::condition::writes;
use crate::servers::{Kind, Server, kinds};
use crate::watching::{OWN, Watching, node};

/// An agent that looks for conditions all the time, and the conditions that the test sets.
struct Agent {
    watching: Watching,
    conditions: Conditions,
    asked: Option<oneshot::Sender<Conditions>>,
}

impl Agent {
    fn of(server: &Server) -> Self {
        let (folder, looks) = (tempfile::tempdir().unwrap(), Duration::from_millis(10));
        let watching = Watching::looking(server.access(), server.pace(), folder, looks);
        Self { watching, conditions: Conditions::default(), asked: None }
    }

    /// Waits until the agent has looked at the conditions once more, and has written what follows.
    async fn looks(&mut self) {
        if self.asked.is_none() {
            self.asked = Some(self.question().await);
        }
        self.asked.take().unwrap().send(self.conditions.clone()).unwrap();
        // The agent asks again when it has written everything.
        self.asked = Some(self.question().await);
    }

    async fn question(&mut self) -> oneshot::Sender<Conditions> {
        loop {
            if let Event::Conditions(reply) = self.watching.next().await {
                return reply;
            }
        }
    }
}

/// Returns type, reason and number of each Event.
async fn told(server: &Server) -> Vec<(String, String, i64)> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let told = |event: &Value| {
        (word(&event["type"]), word(&event["reason"]), event["series"]["count"].as_i64().unwrap_or(1))
    };
    server.events().await.iter().map(told).collect()
}

fn warning(reason: &str, count: i64) -> (String, String, i64) {
    ("Warning".into(), reason.into(), count)
}

fn over(reason: &str, count: i64) -> (String, String, i64) {
    ("Normal".into(), reason.into(), count)
}

/// Returns the methods of the requests that write Events.
fn methods(server: &Server) -> Vec<String> {
    let writes = writes(server);
    assert!(writes.iter().all(|request| request.contains("/namespaces/default/events")), "{writes:?}");
    writes.iter().map(|request| request.split(' ').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_condition_is_an_event_on_the_node_until_it_is_over() {
    for kind in kinds() {
        let server = kind.serve(2).await;
        let mut agent = Agent::of(&server);
        // A near miss: every agent starts with a condition that is no Event yet.
        agent.conditions.set(ConditionName::OwnNodeMissing, "node1 has no entry");
        agent.looks().await;
        agent.conditions.clear(ConditionName::OwnNodeMissing);
        agent.looks().await;
        assert_eq!(methods(&server), [""; 0]);

        agent.conditions.set(ConditionName::FirewallDrops, "the chain FORWARD drops");
        agent.looks().await;
        let [event] = &server.events().await[..] else { panic!("{:#?}", server.events().await) };
        assert_eq!(
            [&event["type"], &event["reason"], &event["note"]],
            [
                "Warning",
                "FirewallDrops",
                "the chain FORWARD drops [run the commands that the sentence names]"
            ]
        );
        let regarding = json!({ "apiVersion": "v1", "kind": "Node", "name": OWN, "uid": OWN });
        assert_eq!(event["regarding"], regarding);
        assert_eq!([&event["reportingController"], &event["reportingInstance"]], ["podwire", OWN]);
        if let Server::Cluster(cluster) = &server {
            assert_eq!(cluster.described(OWN).await, 1);
        }
        // It holds: no look writes it again.
        for _ in 0..3 {
            agent.looks().await;
        }
        assert_eq!(methods(&server), ["POST"]);

        agent.conditions.clear(ConditionName::FirewallDrops);
        agent.looks().await;
        assert_eq!(told(&server).await, [warning("FirewallDrops", 1), over("FirewallDropsOver", 1)]);
        // It comes back: the same Event counts.
        agent.conditions.set(ConditionName::FirewallDrops, "the chain FORWARD drops");
        agent.looks().await;
        agent.conditions.clear(ConditionName::FirewallDrops);
        agent.looks().await;
        assert_eq!(told(&server).await, [warning("FirewallDrops", 2), over("FirewallDropsOver", 2)]);
        assert_eq!(methods(&server), ["POST", "POST", "PATCH", "PATCH"]);
    }
}

#[tokio::test]
async fn the_longest_sentence_is_an_event_that_servers_take() {
    for kind in kinds() {
        let server = kind.serve(1).await;
        let mut agent = Agent::of(&server);
        for name in ConditionName::ALL {
            agent.conditions.set(*name, "ä".repeat(2000));
        }
        agent.looks().await;
        // A burst of 25, without the conditions with which every agent starts.
        let events = server.events().await;
        assert_eq!(events.len(), 25);
        let is_longest = |event: &Value| event["note"].as_str().is_some_and(|note| note.len() > 1000);
        assert!(events.iter().all(is_longest), "{events:#?}");
        agent.looks().await;
        assert_eq!(methods(&server).len(), 25, "the rest comes later");
    }
}

#[tokio::test]
async fn an_event_that_has_expired_is_made_again() {
    let server = Kind::Streams.serve(1).await;
    let Server::Ours { server: ours, .. } = &server else { unreachable!() };
    let mut agent = Agent::of(&server);
    for _ in 0..2 {
        agent.conditions.set(ConditionName::MtuTooLarge, "9000 bytes");
        agent.looks().await;
        agent.conditions.clear(ConditionName::MtuTooLarge);
        agent.looks().await;
        ours.expire_events();
    }
    assert_eq!(methods(&server), ["POST", "POST", "PATCH", "POST", "PATCH", "POST"]);
}

/// Counts the lines of a log.
struct Counter(Arc<AtomicUsize>);

impl io::Write for Counter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_refuses_events_delays_nothing_else() {
    for code in [403, 404, 500] {
        let server = Kind::Streams.serve(1).await;
        let Server::Ours { server: ours, .. } = &server else { unreachable!() };
        let mut agent = Agent::of(&server);
        agent.watching.list().await;
        ours.fail(Some(Fault::EventsRefused(code)));
        agent.conditions.set(ConditionName::FirewallDrops, "the chain FORWARD drops");
        agent.conditions.set(ConditionName::MtuTooLarge, "9000 bytes");
        let warnings = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&warnings);
        // Like the agent's own log, without the lines of kube.
        let log = tracing_subscriber::fmt().with_env_filter("podwire=warn");
        let log = log.with_writer(move || Counter(Arc::clone(&counter)));
        // The runtime of the test has one thread, so this is also the agent's log.
        let _log = tracing::subscriber::set_default(log.finish());
        agent.looks().await;
        assert_eq!(methods(&server), ["POST"], "after a refusal no other Event is tried");
        agent.looks().await;
        assert_eq!(methods(&server).len(), 2);
        assert_eq!(warnings.load(Ordering::Relaxed), 1, "each refusal is a line in the log");
        server.put(node(2)).await;
        assert_eq!(agent.watching.names().await, ["node1", "node2"]);
        // A condition that ends before the server was told of it is no Event.
        agent.conditions.clear(ConditionName::FirewallDrops);
        ours.fail(None);
        agent.looks().await;
        assert_eq!(told(&server).await, [warning("MtuTooLarge", 1)], "{code}");
    }
}
