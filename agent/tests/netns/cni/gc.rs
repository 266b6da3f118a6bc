//! GC: what it removes and what it keeps.

use podwire_common::names::maps;
use serde_json::json;
use xtask::lab::Lab;

use super::orders::devices_of;
use super::{
    Container, INVALID_CONFIGURATION, TRY_AGAIN_LATER, UNKNOWN_CONTAINER, address, failed, gc, of_the_node,
    succeeded,
};
use crate::footprint::Footprint;

#[test]
fn an_attachment_whose_network_is_not_known_is_kept() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [old, new] = ["old", "new"].map(|name| Container::new(node, name));
    let result = old.add();
    node.stop_agent().unwrap();
    // Remove the network's name from the file.
    for file in std::fs::read_dir(node.state_dir().join("endpoints")).unwrap() {
        let path = file.unwrap().path();
        let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(record["endpoint"].as_object_mut().unwrap().remove("network"), Some(json!("podwire")));
        std::fs::write(&path, record.to_string()).unwrap();
    }
    node.start_agent().unwrap();
    let removed = new.add();
    succeeded(gc(node, "podwire", &[]));
    succeeded(old.run("CHECK", Some(&result)));
    failed(&new.run("CHECK", Some(&removed)), UNKNOWN_CONTAINER, &new.call.container_id);
    node.exec(&["ping", "-c", "1", "-W", "5", &address(&result)]).unwrap();
    succeeded(old.run("DEL", None));
}

#[test]
fn without_a_list_or_an_agent_nothing_goes() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = Container::new(node, "pod");
    let result = pod.add();
    let there = || (node.map_dump(maps::ENDPOINTS).unwrap(), devices_of(node));
    let before = there();
    failed(
        &of_the_node(node, "GC").run().unwrap(),
        INVALID_CONFIGURATION,
        "cni.dev/valid-attachments is missing",
    );
    node.kill_agent().unwrap();
    failed(&gc(node, "podwire", &[]), TRY_AGAIN_LATER, "no agent accepts");
    node.start_agent().unwrap();
    assert_eq!(there(), before);
    succeeded(pod.run("CHECK", Some(&result)));
}

#[test]
fn pod_without_its_namespace_is_released_by_gc() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let gone = Container::after_another(node, "gone");
    let before = Footprint::of(node, &[]);
    let given = address(&gone.add());
    node.exec(&["ip", "netns", "del", gone.ns.name()]).unwrap();
    drop(gone);
    succeeded(gc(node, "podwire", &[]));
    assert_eq!(Footprint::of(node, &[]), before, "of {given}");
}
