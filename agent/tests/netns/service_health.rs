//! What load balancers ask each node about services over HTTP, as they ask kube-proxy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use xtask::lab::{Lab, Mode, Node, Ns};

use crate::idle_clients::try_get_at;
use crate::service::service;
use crate::services::{ENTRIES, lab, lab_with, object, put, slice};
use crate::sockets::{listen, wait_until};
use crate::sweep::{comes, condition, goes};

const PORT: u16 = 30595;
const ADDRESS: [&str; 2] = ["--service-health-address", "[::]:10256"];
const CONDITION: &str = "service-health-port";

fn asked(ns: &Ns, address: IpAddr, port: u16, path: &str) -> String {
    let answer = try_get_at(ns, SocketAddr::new(address, port), path);
    answer.unwrap_or_else(|error| error.to_string())
}

/// Returns status, headers in lower case and body of an answer.
fn parts(answer: &str) -> (u16, String, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_lowercase(), serde_json::from_str(body).unwrap())
}

/// Returns a service for load balancers that only nodes with endpoints serve.
fn balanced(last: u8) -> Value {
    let mut web = object("web", service(last));
    web["spec"]["type"] = "LoadBalancer".into();
    web["spec"]["externalTrafficPolicy"] = "Local".into();
    web["spec"]["healthCheckNodePort"] = PORT.into();
    web
}

/// Waits until a healthy agent answers with this number of local endpoints, in one of the families.
#[track_caller]
fn has_endpoints(lab: &Lab, node: &Node, family: usize, count: u16) {
    let ask = || asked(lab.world(), node.addresses()[family], PORT, "/");
    let weight = format!("x-load-balancing-endpoint-weight: {count}\r\n");
    let is_it = |answer: &String| {
        answer.to_lowercase().contains(&weight) && answer.contains("\"serviceProxyHealthy\":true")
    };
    let found = wait_until(|| Some(ask()).filter(is_it));
    let answer = found.unwrap_or_else(|| panic!("{}\n{}", ask(), node.agent_log_tail(20)));
    let (status, head, body) = parts(&answer);
    assert_eq!(status, if count > 0 { 200 } else { 503 }, "{answer}");
    assert!(head.contains("content-type: application/json\r\n"), "{answer}");
    assert!(head.contains("x-content-type-options: nosniff\r\n"), "{answer}");
    let name = json!({ "namespace": "default", "name": "web" });
    let wanted = json!({ "service": name, "localEndpoints": count, "serviceProxyHealthy": true });
    assert_eq!(body, wanted);
}

#[test]
fn load_balancers_learn_which_nodes_have_endpoints() {
    let lab = lab_with(Mode::Vxlan, &ADDRESS);
    let (node, other, api) = (lab.node(0), lab.node(1), lab.api_server().unwrap());
    let pods = ["one", "two"].map(|name| node.add_pod(name).unwrap());
    let with = |family, ready: [bool; 2]| {
        let mut slice = slice("web", &[0, 1].map(|pod: usize| pods[pod].addresses()[family]), family);
        for (endpoint, ready) in ready.into_iter().enumerate() {
            slice["endpoints"][endpoint]["nodeName"] = node.name().into();
            slice["endpoints"][endpoint]["conditions"]["ready"] = ready.into();
        }
        api.put(slice);
    };
    api.put(balanced(0x39));
    for (ready, counts) in [([true, true], [2, 2]), ([false, true], [1, 2]), ([false, false], [0, 2])] {
        with(0, ready);
        with(1, [true, true]);
        for (family, count) in counts.into_iter().enumerate() {
            has_endpoints(&lab, node, family, count);
            has_endpoints(&lab, other, family, 0);
        }
    }
    // An agent that takes over answers, too.
    node.restart_agent().unwrap();
    has_endpoints(&lab, node, 1, 2);

    let mut moved = balanced(0x39);
    moved["spec"]["healthCheckNodePort"] = (PORT + 1).into();
    api.put(moved);
    let answer = |address, port| asked(lab.world(), address, port, "/any");
    let answers =
        |port| -> Vec<String> { node.addresses().into_iter().map(|address| answer(address, port)).collect() };
    let is_moved = || {
        let is_gone = answers(PORT).iter().all(|answer| answer == "nobody listens");
        (is_gone && answers(PORT + 1).iter().all(|answer| answer.starts_with("HTTP/1.1"))).then_some(())
    };
    assert!(wait_until(is_moved).is_some(), "{:?}\n{}", answers(PORT), node.agent_log_tail(20));
    api.delete_like(&balanced(0x39));
    let is_gone = || answers(PORT + 1).iter().all(|answer| answer == "nobody listens").then_some(());
    assert!(wait_until(is_gone).is_some(), "{:?}", answers(PORT + 1));
    assert_eq!(condition(node, CONDITION), 0);
}

#[test]
fn port_that_is_taken_is_named_and_tried_again() {
    let lab = lab_with(Mode::Vxlan, &ADDRESS);
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let taken = listen(node, (Ipv4Addr::UNSPECIFIED, PORT));
    api.put(balanced(0x3a));
    let said = comes(node, CONDITION, "default/web at 0.0.0.0:30595: Address already in use");
    assert!(said.contains("ss -ltnp"), "{said}");
    // The other family's port is free, and answers.
    has_endpoints(&lab, node, 1, 0);
    assert_eq!(condition(node, CONDITION), 1);
    drop(taken);
    goes(node, CONDITION);
    has_endpoints(&lab, node, 0, 0);
}

#[test]
fn node_is_unhealthy_while_its_pods_may_be_cut_off() {
    let lab = lab_with(Mode::Vxlan, &ADDRESS);
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    api.put(balanced(0x3b));
    has_endpoints(&lab, node, 0, 0);
    let asked = |port, path| parts(&asked(node, Ipv4Addr::LOCALHOST.into(), port, path));
    let paths = ["/healthz", "/livez"];
    for path in paths {
        let (status, head, body) = asked(10256, path);
        assert!(status == 200 && head.contains("content-type: application/json\r\n"), "{status} {head}");
        assert_eq!(body["lastUpdated"], body["currentTime"], "while all is well");
    }
    let (address, uplink) = (node.address(), node.uplink());
    node.ip(&format!("address flush dev {uplink}")).unwrap();
    node.exec(&["ip", "-6", "route", "flush", "dev", uplink]).unwrap();
    comes(node, "no-uplink", "no link has this node's InternalIP");
    for path in paths {
        let (status, _, body) = asked(10256, path);
        assert_eq!(status, 503, "{path}");
        assert!(body["lastUpdated"].as_str() < body["currentTime"].as_str(), "{body}");
    }
    assert_eq!(asked(PORT, "/").2["serviceProxyHealthy"], false);
    node.ip(&format!("address add {address}/24 dev {uplink}\nroute add default via 10.200.0.254\n")).unwrap();
    for path in paths {
        let is_well = || (asked(10256, path).0 == 200).then_some(());
        assert!(wait_until(is_well).is_some(), "{path}\n{}", node.agent_log_tail(20));
    }
    has_endpoints(&lab, node, 0, 0);
}

#[test]
fn leaving_node_gets_no_new_connections_but_lives() {
    let lab = lab_with(Mode::Vxlan, &["--service-health-address", "0.0.0.0:10256"]);
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let asked = |path| parts(&asked(lab.world(), node.address(), 10256, path));
    let becomes = |status: u16| {
        let is_it = || (asked("/healthz").0 == status).then_some(());
        assert!(wait_until(is_it).is_some(), "{:?}\n{}", asked("/healthz"), node.agent_log_tail(20));
        let (_, _, body) = asked("/healthz");
        assert_eq!(body["nodeEligible"], status == 200);
        assert_eq!(body["lastUpdated"], body["currentTime"], "it is healthy");
        let (live, _, body) = asked("/livez");
        assert_eq!((live, &body["nodeEligible"]), (200, &Value::Null));
    };
    becomes(200);
    let whole = api.node(node.name()).unwrap();
    let mut tainted = whole.clone();
    tainted["spec"]["taints"] =
        json!([{ "key": "ToBeDeletedByClusterAutoscaler", "value": "1764500000", "effect": "NoSchedule" }]);
    let mut deleted = whole.clone();
    deleted["metadata"]["deletionTimestamp"] = "2026-11-30T12:00:00Z".into();
    for leaving in [tainted, deleted] {
        api.put(leaving);
        becomes(503);
        api.put(whole.clone());
        becomes(200);
    }
}

#[test]
fn beside_kube_proxy_its_ports_are_left_alone() {
    let lab = lab(Mode::Vxlan);
    let node = lab.node(0);
    let taken = listen(node, (Ipv4Addr::UNSPECIFIED, PORT));
    lab.api_server().unwrap().put(balanced(0x3c));
    // The other service has entries, too, although it has no endpoint.
    put(&lab, "other", 0x3d, &[&node.add_pod("pod").unwrap()], 2 * ENTRIES);
    drop(taken);
    for port in [PORT, 10256] {
        for address in node.addresses() {
            assert_eq!(asked(lab.world(), address, port, "/healthz"), "nobody listens");
        }
    }
    assert_eq!(condition(node, CONDITION), 0);
}
