//! CHECK with the real agent, after others changed a pod's link, programs, map entries and route.

use std::path::PathBuf;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node};

use super::{CHECK_FAILED, Container, UNKNOWN_CONTAINER, addresses, failed, host_side};

#[test]
fn every_fault_of_the_nodes_and_the_pods_side_is_named_at_once() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    // A program of another agent. It is in another namespace, so it does the pod no harm.
    let foreign = foreign_program(lab.node(1), &lab);
    let runtime = json!({"portMappings": [
        {"hostPort": 9000, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 9001, "containerPort": 81, "protocol": "udp"},
    ]});
    let mut pod = Container::new(node, "pod");
    pod.call.config["runtimeConfig"] = runtime;
    let result = pod.add();
    let (host, addresses) = (host_side(&pod), addresses(&result));
    let of_addresses = addresses.iter().flat_map(|address| {
        [
            format!("ENDPOINTS has mtu 9999 for {address}, not 1450"),
            format!("the host's route to {address} is missing"),
        ]
    });
    let of_pod = [
        format!("{host} has the MAC address 02:00:00:00:00:09, not"),
        format!("{host} is down on the node"),
        format!("{host} has MTU 1300, not 1450"),
        format!("the ingress of {host} has program "),
        format!("to_pod is not attached to the egress of {host}"),
        "the hostPort *:9001/udp to port 81 is missing in FRONTENDS".to_owned(),
        "eth0 has MTU 1300, not 1450".to_owned(),
        format!("route default via {} dev eth0 is missing", node.gateway()),
        "route default via fe80::1 dev eth0 is missing".to_owned(),
    ];
    let faults: Vec<_> = of_pod.into_iter().chain(of_addresses).collect();
    let mut said = String::new();
    // The agent notices a change within ten seconds, and repairs some of these faults. Then the
    // test breaks everything again.
    for _ in 0..3 {
        let replace = [
            "tc",
            "filter",
            "replace",
            "dev",
            &host,
            "ingress",
            "prio",
            "1",
            "handle",
            "1",
            "bpf",
            "da",
            "object-pinned",
        ];
        node.exec(&[&replace[..], &[foreign.to_str().unwrap()]].concat()).unwrap();
        let _ = node.exec(&["tc", "filter", "del", "dev", &host, "egress"]);
        set_mtu(node, 9999);
        delete_frontend(node, 9001);
        pod.ns.ip("link set eth0 mtu 1300").unwrap();
        for family in ["-4", "-6"] {
            let _ = pod.ns.exec(&["ip", family, "route", "delete", "default"]);
        }
        node.ip(&format!("link set {host} down address 02:00:00:00:00:09 mtu 1300")).unwrap();
        let output = pod.run("CHECK", Some(&result));
        assert!(!output.success && output.answer["code"] == CHECK_FAILED, "{output:?}");
        said = output.answer["msg"].as_str().unwrap().to_owned();
        if faults.iter().all(|fault| said.contains(fault)) {
            break;
        }
    }
    for fault in &faults {
        assert!(said.contains(fault), "{fault:?} is not in {said}");
    }
}

#[test]
fn a_host_side_that_is_gone_is_named() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = Container::new(node, "pod");
    let result = pod.add();
    node.ip(&format!("link del {}", host_side(&pod))).unwrap();
    let output = pod.run("CHECK", Some(&result));
    // The agent may have found already that the device is missing. Then it has released the
    // endpoint.
    if output.answer["code"] != UNKNOWN_CONTAINER {
        failed(&output, CHECK_FAILED, &format!("{} is gone on the node", host_side(&pod)));
        failed(&output, CHECK_FAILED, "eth0 is missing in the pod");
    }
}

/// Returns `from_pod` of another node's agent, pinned in a folder that the lab removes.
fn foreign_program(node: &Node, lab: &Lab) -> PathBuf {
    let pod = node.add_pod("foreign").unwrap();
    let shown =
        node.exec(&["tc", "-json", "filter", "show", "dev", pod.host_interface(), "ingress"]).unwrap();
    let filters: Value = serde_json::from_str(&shown).unwrap();
    let id = filters.as_array().unwrap().iter().find_map(|filter| filter["options"]["prog"]["id"].as_u64());
    let path = PathBuf::from("/sys/fs/bpf").join(lab.name()).join("foreign");
    node.exec(&["bpftool", "prog", "pin", "id", &id.unwrap().to_string(), path.to_str().unwrap()]).unwrap();
    path
}

/// Writes another MTU into all entries of ENDPOINTS.
fn set_mtu(node: &Node, mtu: u32) {
    let map = node.bpf_dir().join(maps::ENDPOINTS);
    let update = ["bpftool", "map", "update", "pinned", map.to_str().unwrap(), "key"].map(str::to_owned);
    for entry in node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap() {
        let mut value = bytes(&entry["value"]);
        value[12..16].clone_from_slice(&mtu.to_ne_bytes().map(|byte| byte.to_string()));
        let command = [&update[..], &bytes(&entry["key"]), &["value".to_owned()], &value].concat();
        node.exec(&command.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
}

fn delete_frontend(node: &Node, port: u16) {
    let port = port.to_be_bytes().map(|byte| byte.to_string());
    for entry in node.map_dump(maps::FRONTENDS).unwrap().as_array().unwrap() {
        let key = bytes(&entry["key"]);
        if key[16..18] == port {
            let map = node.bpf_dir().join(maps::FRONTENDS);
            let delete =
                ["bpftool", "map", "delete", "pinned", map.to_str().unwrap(), "key"].map(str::to_owned);
            let command = [&delete[..], &key].concat();
            node.exec(&command.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        }
    }
}

/// Returns bytes in decimal, as `bpftool` takes them.
fn bytes(dumped: &Value) -> Vec<String> {
    let byte =
        |byte: &Value| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    dumped.as_array().unwrap().iter().map(|value| byte(value).to_string()).collect()
}
