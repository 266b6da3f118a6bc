//! DEL, when the purge of the pod's flows takes longer than a runtime should wait.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use podwire_cni::fault::{Fault, Step, VARIABLE};
use serde_json::json;
use xtask::lab::{Lab, Node};

use super::{Container, address, host_side, lab_for_one_pod, succeeded};

/// Starts the agent so that its first purge lasts until the returned file exists.
fn with_a_long_purge(node: &Node) -> PathBuf {
    let over = node.state_dir().with_file_name("the-purge-is-over");
    let fault = format!("{}:{}:{}", Step::FlowsForgotten.name(), Fault::Wait.name(), over.display());
    node.start_agent_with(&[(VARIABLE, &fault)]).unwrap();
    over
}

fn file_of(node: &Node, pod: &Container) -> PathBuf {
    node.state_dir().join("endpoints").join(format!("{}.json", host_side(pod)))
}

#[test]
fn del_does_not_wait_for_a_long_purge_and_the_address_does() {
    let lab = lab_for_one_pod();
    let node = lab.node(0);
    let over = with_a_long_purge(node);
    let [old, new] = ["old", "new"].map(|name| Container::new(node, name));
    let given = address(&old.add());
    succeeded(old.run("DEL", None));
    assert!(file_of(node, &old).exists(), "the file must stay: a later agent has to purge");
    // A runtime repeats a DEL when it has not received the answer.
    succeeded(old.run("DEL", None));
    thread::scope(|scope| {
        let adding = scope.spawn(|| new.add());
        // Time for the call to start. The answer must be the same if it has not.
        thread::sleep(Duration::from_millis(300));
        fs::write(&over, "").unwrap();
        assert_eq!(address(&adding.join().unwrap()), given);
    });
    assert!(!file_of(node, &old).exists());
    succeeded(new.run("DEL", None));
}

#[test]
fn pods_are_added_and_deleted_while_flows_are_purged() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    let over = with_a_long_purge(node);
    let [first, second, third, last] =
        ["first", "second", "third", "last"].map(|name| Container::new(node, name));
    let port = json!({ "portMappings": [{ "hostPort": 9000, "containerPort": 80, "protocol": "tcp" }] });
    let with_port = |pod: &Container| {
        let mut call = pod.call.clone();
        call.config["runtimeConfig"] = port.clone();
        call
    };
    succeeded(with_port(&first).run().unwrap());
    let given = address(&second.add());
    succeeded(first.run("DEL", None));
    // The next walk purges the second pod's flows.
    succeeded(second.run("DEL", None));
    assert!(file_of(node, &second).exists());
    let other = third.add();
    assert_ne!(address(&other), given, "the address was given out before the purge ended");
    succeeded(third.run("DEL", None));
    thread::scope(|scope| {
        // The hostPort belongs to the first pod until the agent has released that pod.
        let adding = scope.spawn(|| succeeded(with_port(&last).run().unwrap()));
        thread::sleep(Duration::from_millis(300));
        fs::write(&over, "").unwrap();
        adding.join().unwrap();
    });
    assert!(!file_of(node, &first).exists() && !file_of(node, &second).exists());
    succeeded(last.run("DEL", None));
}

#[test]
fn agent_that_dies_within_a_purge_leaves_it_to_the_next() {
    let lab = lab_for_one_pod();
    let node = lab.node(0);
    with_a_long_purge(node);
    let [old, new] = ["old", "new"].map(|name| Container::new(node, name));
    let given = address(&old.add());
    succeeded(old.run("DEL", None));
    node.kill_agent().unwrap();
    assert!(file_of(node, &old).exists());
    node.start_agent().unwrap();
    assert!(!file_of(node, &old).exists());
    assert_eq!(address(&new.add()), given);
    succeeded(new.run("DEL", None));
}
