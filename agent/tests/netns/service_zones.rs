//! Hints for zones: the zone of this node's object decides which backends its programs use.

use std::net::SocketAddr;

use serde_json::json;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Mode, Node, Pod};

use crate::service::service;
use crate::services::{ENTRIES, POD_PORT, SERVICE_PORT, lab, put, slice};
use crate::sockets::wait_until;
use crate::sweep::metric;

const ZONE: &str = "topology.kubernetes.io/zone";

/// Waits until the node's programs have so many backends.
#[track_caller]
fn has_backends(node: &Node, count: usize) {
    let entries = || metric(node, "podwire_table_entries{table=\"BACKENDS\"}");
    let as_wanted = || (entries() == count.to_string()).then_some(());
    assert!(wait_until(as_wanted).is_some(), "{} of {count}\n{}", entries(), node.agent_log_tail(20));
}

#[test]
fn hints_count_from_when_the_node_has_their_zone() {
    let lab = lab(Mode::Vxlan);
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let client = node.add_pod("client").unwrap();
    let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    put(&lab, "web", 0x38, &[&near, &far], ENTRIES);
    for family in 0..2 {
        let mut hinted = slice("web", &[&near, &far].map(|pod| pod.addresses()[family]), family);
        for (endpoint, zone) in [(0, "zone-a"), (1, "zone-b")] {
            hinted["endpoints"][endpoint]["hints"] = json!({ "forZones": [{ "name": zone }] });
        }
        api.put(hinted);
    }
    has_backends(node, 8);
    let zone = |zone: Option<&str>| {
        let mut object = api.node(node.name()).unwrap();
        object["metadata"]["labels"][ZONE] = json!(zone);
        api.put(object);
    };
    let reach = |server: &Pod| {
        for address in service(0x38) {
            let route = Route::translated(SocketAddr::new(address, SERVICE_PORT), POD_PORT);
            traffic::tcp_exchange_on(&client, server, route, 1 << 10).unwrap();
        }
    };
    for (name, server) in [("zone-a", &near), ("zone-b", &far)] {
        zone(Some(name));
        has_backends(node, 4);
        // The zones change places: the number of backends does not say which they are.
        let goes_there = || {
            let list = node.map_dump("BACKENDS").unwrap().to_string().replace(['\n', ' '], "");
            server.addresses().iter().all(|address| list.contains(&crate::dumped(*address))).then_some(())
        };
        assert!(wait_until(goes_there).is_some(), "{name}\n{}", node.agent_log_tail(20));
        reach(server);
        assert_eq!(
            metric(lab.node(1), "podwire_table_entries{table=\"BACKENDS\"}"),
            "8",
            "of the other node"
        );
    }
    // The successor saves its first list at once.
    node.restart_agent().unwrap();
    let saved = || std::fs::read_to_string(node.state_dir().join("nodes.json")).unwrap_or_default();
    assert!(wait_until(|| saved().contains("zone-b").then_some(())).is_some(), "{}", saved());
    api.stop();
    node.restart_agent().unwrap();
    has_backends(node, 4);
    reach(&far);
    api.start().unwrap();
    zone(None);
    has_backends(node, 8);
}
