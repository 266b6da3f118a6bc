//! `podwire services`: who serves a service, and which backends it has.

use serde_json::{Value, json};
use xtask::lab::{Lab, Mode};

use crate::commands::{rows, text};
use crate::service::service;
use crate::services::{ENTRIES, POD_PORT, SERVICE_PORT, lab, object, put, serves, slice};
use crate::sockets::wait_until;

/// Returns a column of the rows.
fn column<'a>(rows: &'a [Value], name: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[name].as_str().unwrap_or("-")).collect()
}

#[test]
fn services_are_shown_with_who_serves_them_and_why() {
    let lab = lab(Mode::Vxlan);
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
    let gone = lab.node(1).add_pod("gone").unwrap();
    put(&lab, "web", 0x35, &[&near, &far, &gone], ENTRIES);
    let mut web = object("web", service(0x35));
    web["spec"]["externalTrafficPolicy"] = "Local".into();
    web["spec"]["ports"] = json!([
        { "name": "tcp", "port": SERVICE_PORT, "protocol": "TCP", "nodePort": 30080 },
        { "name": "signal", "port": SERVICE_PORT, "protocol": "SCTP" },
    ]);
    let (mut sticky, mut empty) = (object("sticky", service(0x36)), object("empty", service(0x37)));
    for object in [&mut sticky, &mut empty] {
        object["spec"]["ports"].as_array_mut().unwrap().truncate(1);
    }
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    sticky["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 120 } });
    let mut of_sticky = slice("sticky", &[near.addresses()[0]], 0);
    of_sticky["endpoints"][0]["nodeName"] = node.name().into();
    let mut of_web = slice("web", &[&near, &far, &gone].map(|pod| pod.addresses()[0]), 0);
    of_web["endpoints"][0]["nodeName"] = node.name().into();
    of_web["endpoints"][1]["nodeName"] = lab.node(1).name().into();
    of_web["endpoints"][2]["conditions"] = json!({ "ready": false });
    for object in [web, sticky, empty, of_sticky, of_web] {
        api.put(object);
    }
    let shown = |arguments: &[&str]| rows(node, &[&["services"], arguments].concat());
    // The agent may take the objects as several changes.
    let are_all = |rows: &Vec<Value>| rows.len() == 5 && json!(rows).to_string().contains("not-ready");
    let all = wait_until(|| Some(shown(&["--family", "ipv4"])).filter(are_all)).unwrap();
    let services = ["default/empty", "default/sticky", "default/web", "default/web", "default/web"];
    assert_eq!(column(&all, "service"), services);
    let kinds = ["cluster-ip", "cluster-ip", "cluster-ip", "node-port", "cluster-ip"];
    assert_eq!(column(&all, "kind"), kinds);
    assert_eq!(column(&all, "protocol"), ["tcp", "tcp", "tcp", "tcp", "sctp"]);
    assert_eq!(column(&all, "port_name"), ["tcp", "tcp", "tcp", "tcp", "signal"]);
    let by = ["podwire", "podwire", "podwire", "podwire", "kube-proxy"];
    assert_eq!(column(&all, "served_by"), by);
    let because = ["-", "-", "-", "-", "sctp"];
    assert_eq!(column(&all, "because"), because);
    assert_eq!(column(&all, "answer"), ["refused", "-", "-", "-", "-"]);
    assert!(text(node, &["services", "--service", "empty"]).contains("podwire: refused"));
    let affinity: Vec<_> = all.iter().map(|row| row["affinity"].as_u64()).collect();
    assert_eq!(affinity, [None, Some(120), None, None, None]);
    assert_eq!(all[2]["list"].as_str().unwrap().len(), 16);

    let yes = |why: &str| json!({ "used": true, "why": why });
    let no = |why: &str| json!({ "used": false, "why": why });
    let [here, there] = [node.name(), lab.node(1).name()];
    let pod = format!("lab/{}", near.call().container_id);
    let end = |address, others: Value| {
        let mut row = json!({ "address": address, "port": POD_PORT });
        row.as_object_mut().unwrap().extend(others.as_object().unwrap().clone());
        row
    };
    let [one, two, three] = [&near, &far, &gone].map(|pod| pod.addresses()[0]);
    let mut of_node_port = vec![
        end(one, json!({ "pod": pod, "node": here, "inside": yes("ready"), "outside": yes("ready") })),
        end(two, json!({ "node": there, "inside": yes("ready"), "outside": no("not-local") })),
        end(three, json!({ "inside": no("not-ready"), "outside": no("not-ready") })),
    ];
    assert_eq!(all[3]["backends"], json!(of_node_port));
    of_node_port.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("outside")));
    assert_eq!(all[2]["backends"], json!(of_node_port));

    assert_eq!(column(&shown(&["--service", "sticky"]), "service"), ["default/sticky"; 2]);
    assert_eq!(shown(&["--namespace", "shop"]), [] as [Value; 0]);
    assert_eq!(column(&shown(&["--address", &one.to_string()]), "service"), services[1..4]);
    assert_eq!(column(&shown(&["--protocol", "SCTP"]), "service"), ["default/web"; 2]);
    assert_eq!(column(&shown(&["--port", "30080"]), "kind"), ["node-port"; 2]);
    let lines = text(node, &["services", "--service", "default/web", "--port", "30080", "--family", "ipv4"]);
    let of_far = lines.lines().find(|line| line.contains(&two.to_string())).unwrap();
    assert!(of_far.contains("podwire") && of_far.contains("not used: not-local"), "{lines}");

    let lines = text(node, &["services", "--service", "sticky", "--family", "ipv4"]);
    assert!(lines.contains(" 120s "), "{lines}");

    let list = &all[2]["list"];
    node.stop_agent().unwrap();
    let of_sticky = shown(&["--address", &service(0x36)[0].to_string()]);
    assert_eq!(of_sticky[0]["affinity"], 120);
    let kept = shown(&["--address", &service(0x35)[0].to_string()]);
    let ends = [&near, &far].map(|pod| pod.addresses()[0]);
    let [row] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!((&row["service"], &row["kind"]), (&Value::Null, &Value::Null));
    assert_eq!((&row["served_by"], &row["list"]), (&json!("podwire"), list));
    let backends = row["backends"].as_array().unwrap();
    let addresses: Vec<_> = backends.iter().map(|backend| &backend["address"]).collect();
    assert_eq!(addresses, ends.map(|end| json!(end)).iter().collect::<Vec<_>>());
    assert!(backends.iter().all(|backend| backend["inside"].is_null()), "{backends:?}");
}

#[test]
fn an_address_that_is_not_for_processes_is_shown() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--services", "on"]).build().unwrap();
    let (node, api) = (lab.node(0), lab.api_server().unwrap());
    let pod = node.add_pod("pod").unwrap();
    let mut service = object("web", service(0x38));
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "203.0.113.38", "ipMode": "VIP" }] } });
    api.put(service);
    api.put(slice("web", &[pod.addresses()[0]], 0));
    let filter = ["services", "--family", "ipv4", "--protocol", "tcp"];
    let are_all = |rows: &Vec<Value>| rows.len() == 2 && column(rows, "list").iter().all(|list| *list != "-");
    let all = wait_until(|| Some(rows(node, &filter)).filter(are_all)).unwrap();
    assert_eq!(column(&all, "kind"), ["cluster-ip", "load-balancer"]);
    let leaves: Vec<_> = all.iter().map(|row| row["leaves_processes"].as_bool()).collect();
    assert_eq!(leaves, [None, Some(true)]);
    assert!(text(node, &filter).contains(" podwire, processes kube-proxy "));
}

#[test]
fn without_the_option_the_command_says_that_none_is_read() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let shown = lab.node(0).show(&["services"]).unwrap();
    let said = String::from_utf8_lossy(&shown.stderr).into_owned();
    assert!(!shown.status.success() && said.contains("--services is off"), "{said}");
    assert!(serves(lab.node(0), 0));
}
