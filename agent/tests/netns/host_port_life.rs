//! hostPorts come and go with their pods: which pod gets one, which is refused, and what is left.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::traffic::{self, Route};
use xtask::lab::{CniOutput, Lab, Mode, Node, Ns};

use crate::host_ports::mappings;
use crate::sockets::{UdpSocket, udp, wait_until};

const PORT: u16 = 8080;
const HOST_PORT: u16 = 9088;
const STREAM: u64 = 1 << 20;
// CNI specification, "Error", and the plugin's own from 100 on.
const INVALID_CONFIGURATION: u32 = 7;
const CHECK_FAILED: u32 = 103;
const HOST_PORT_UNAVAILABLE: u32 = 105;

#[test]
fn host_port_of_another_pod_is_refused_and_nothing_is_left() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let everywhere = mappings(&[(HOST_PORT, PORT, "tcp", None), (53, 53, "udp", Some(node.address()))]);
    node.add_pod_with("first", &everywhere).unwrap();
    for (what, wanted) in [
        ("the-same", mappings(&[(HOST_PORT, 80, "tcp", None)])),
        ("a-particular-address-of-it", mappings(&[(HOST_PORT, PORT, "TCP", Some(node.address()))])),
        ("every-address-beside-a-particular-one", mappings(&[(53, 53, "udp", None)])),
        ("one-of-several", mappings(&[(9000, 80, "tcp", None), (53, 53, "udp", Some(node.address()))])),
    ] {
        refused(node, what, &wanted, HOST_PORT_UNAVAILABLE, &format!("pod lab/{}-node1-first", lab.name()));
    }
    let tunnel = mappings(&[(8472, 53, "udp", None)]);
    refused(node, "the-tunnels-port", &tunnel, HOST_PORT_UNAVAILABLE, "--vxlan-port");
    let twice = mappings(&[(9000, 80, "tcp", None), (9000, 81, "tcp", None)]);
    refused(node, "two-ports-at-one", &twice, INVALID_CONFIGURATION, "a hostPort leads to one port");
    let sctp = mappings(&[(9000, 80, "SCTP", None)]);
    refused(node, "SCTP", &sctp, INVALID_CONFIGURATION, "portMappings[0].protocol");
    // The tunnel's port is like any other for TCP, and in a network without a tunnel.
    node.add_pod_with("tcp", &mappings(&[(8472, 53, "tcp", None)])).unwrap();
    let lab = Lab::builder().nodes(1).mode(Mode::Direct).build().unwrap();
    lab.node(0).add_pod_with("direct", &tunnel).unwrap();
}

#[test]
fn pods_share_a_host_port_by_protocol_and_address() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let address = node.address();
    let localhost = Some(Ipv4Addr::LOCALHOST.into());
    // The conformance tests of Kubernetes do the same.
    let pod =
        |name, protocol, address| node.add_pod_with(name, &mappings(&[(54323, PORT, protocol, address)]));
    pod("localhost", "TCP", localhost).unwrap();
    let tcp = pod("tcp", "TCP", Some(address)).unwrap();
    let udp = pod("udp", "UDP", Some(address)).unwrap();
    let route = Route::translated(SocketAddr::new(address, 54323), PORT);
    for client in [lab.world(), lab.node(1)] {
        traffic::tcp_exchange_on(client, &tcp, route, STREAM).unwrap();
        traffic::udp_exchange_on(client, &udp, route, 1000).unwrap();
    }
}

#[test]
fn host_ports_show_in_the_map() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod_with("pod", &mappings(&[(HOST_PORT, PORT, "udp", Some(node.address()))])).unwrap();
    let mapped = |address: IpAddr| {
        let mut bytes = vec![0; 10];
        bytes.extend([0xff, 0xff]);
        bytes.extend(crate::v4(address).octets());
        json!({ "bytes": bytes })
    };
    let port = |port: u16| json!({ "bytes": port.to_be_bytes() });
    let entry = node.map_dump(maps::FRONTENDS).unwrap()[0]["formatted"].clone();
    let (key, value) = (&entry["key"], &entry["value"]);
    assert_eq!((&key["address"], &value["address"]), (&mapped(node.address()), &mapped(pod.address())));
    assert_eq!((&key["port"], &value["port"]), (&port(HOST_PORT), &port(PORT)));
    assert_eq!(key["protocol"], json!(17));
}

#[test]
fn repeated_add_changes_nothing_unless_ports_differ() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let wanted = mappings(&[(HOST_PORT, PORT, "tcp", None)]);
    let pod = node.add_pod_with("pod", &wanted).unwrap();
    let before = frontends(node);
    // A runtime repeats an ADD after the first one has failed. The plugin makes a new pair then.
    pod.ip("link delete eth0").unwrap();
    let again = pod.call().run().unwrap();
    assert!(again.success, "{again:?}");
    assert_eq!(frontends(node), before);
    let route = Route::translated(SocketAddr::new(node.address(), HOST_PORT), PORT);
    traffic::tcp_exchange_on(lab.world(), &pod, route, STREAM).unwrap();
    let mut other = pod.call().clone();
    other.config["runtimeConfig"] = mappings(&[(HOST_PORT + 1, PORT, "tcp", None)]);
    pod.ip("link delete eth0").unwrap();
    failed(&other.run().unwrap(), INVALID_CONFIGURATION, "DEL it first");
    assert!(pod.call().with_command("DEL").run().unwrap().success);
    assert!(other.run().unwrap().success);
    let route = Route::translated(SocketAddr::new(node.address(), HOST_PORT + 1), PORT);
    traffic::tcp_exchange_on(lab.world(), &pod, route, STREAM).unwrap();
}

#[test]
fn del_frees_host_ports_even_with_an_unusable_configuration() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let before = Left::by(node);
    let wanted = mappings(&[(HOST_PORT, PORT, "tcp", None), (HOST_PORT, PORT, "udp", None)]);
    let pod = node.add_pod_with("pod", &wanted).unwrap();
    assert_eq!(frontends(node).len(), 4, "one for each protocol and family");
    pod.delete().unwrap();
    assert_eq!(Left::by(node), before);
    let refused = mappings(&[(HOST_PORT, PORT, "sctp", None)]);
    let deleted = node.cni_call("DEL", "other", &refused).run().unwrap();
    assert!(deleted.success, "{deleted:?}");
    // Without an agent the plugin removes the link. The agent removes the rest when it is back.
    let pod = node.add_pod_with("again", &wanted).unwrap();
    node.kill_agent().unwrap();
    pod.delete().unwrap();
    node.start_agent().unwrap();
    assert_eq!(Left::by(node), before);
}

#[test]
fn check_finds_a_host_port_that_is_not_there() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod_with("pod", &mappings(&[(HOST_PORT, PORT, "tcp", None)])).unwrap();
    let mut check = pod.call().with_command("CHECK");
    check.config["prevResult"] = pod.result().clone();
    assert!(check.run().unwrap().success);
    let map = node.bpf_dir().join(maps::FRONTENDS).to_string_lossy().into_owned();
    let [high, low] = HOST_PORT.to_be_bytes().map(|byte| byte.to_string());
    let mut delete = vec!["bpftool", "map", "delete", "pinned", &map, "key"];
    // 0.0.0.0: all IPv4 addresses of the node.
    delete.extend(["0"; 10].into_iter().chain(["255"; 2]).chain(["0"; 4]));
    delete.extend([high.as_str(), &low, "6", "0"]);
    // The agent may have compared the table between the two commands.
    let missing = wait_until(|| {
        node.exec(&delete).unwrap();
        Some(check.run().unwrap()).filter(|checked| !checked.success)
    });
    let missing = missing.expect("CHECK does not see that the hostPort is missing");
    failed(&missing, CHECK_FAILED, "the hostPort *:9088/tcp to port 8080 is missing");
    node.restart_agent().unwrap();
    assert!(check.run().unwrap().success);
}

#[test]
fn a_flow_to_a_pod_that_is_replaced_goes_on_with_the_new_one() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let clients = [lab.world(), lab.node(1), &near, &far].map(|ns: &Ns| udp(ns, "0.0.0.0:45000"));
        let wanted = mappings(&[(HOST_PORT, PORT, "udp", None)]);
        let to = SocketAddr::new(node.address(), HOST_PORT);
        for name in ["one", "other"] {
            let pod = node.add_pod_with(name, &wanted).unwrap();
            let server = udp(&pod, (Ipv4Addr::UNSPECIFIED, PORT));
            for client in &clients {
                assert_eq!(answer_of(client, &server, to, name), name, "{mode:?}");
            }
            drop(server);
            pod.delete().unwrap();
        }
    }
}

#[test]
fn host_ports_work_on_without_the_agent_and_after_it_is_back() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let wanted = mappings(&[(HOST_PORT, PORT, "tcp", None), (HOST_PORT + 1, PORT + 1, "tcp", None)]);
        let pod = node.add_pod_with("pod", &wanted).unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let before = frontends(node);
        let route = Route::translated(SocketAddr::new(node.address(), HOST_PORT), PORT);
        let other = Route::translated(SocketAddr::new(node.address(), HOST_PORT + 1), PORT + 1);
        let stream = traffic::tcp_stream_on(&far, &pod, route).unwrap();
        node.kill_agent().unwrap();
        stream.wait_for(STREAM).unwrap();
        traffic::tcp_exchange_on(lab.world(), &pod, other, STREAM).unwrap();
        node.start_agent().unwrap();
        stream.wait_for(STREAM).unwrap();
        traffic::tcp_exchange_on(lab.world(), &pod, other, STREAM).unwrap();
        assert_eq!(stream.finish().unwrap().peer_seen_by_server.ip(), far.address(), "{mode:?}");
        assert_eq!(frontends(node), before, "{mode:?}");
        refused(node, "late", &wanted, HOST_PORT_UNAVAILABLE, "pod");
    }
}

/// Asks a server in a pod by its hostPort, lets it answer with a name, and returns the answer.
#[track_caller]
fn answer_of(client: &UdpSocket, server: &UdpSocket, to: SocketAddr, name: &str) -> String {
    client.send_to(b"who?", to).unwrap();
    let mut buffer = [0; 100];
    let (_, peer) = server.recv_from(&mut buffer).expect("a question");
    server.send_to(name.as_bytes(), peer).unwrap();
    let (length, from) = client.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from, to);
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Asserts that an ADD for a pod is refused with a code and with a message that names something,
/// and that it leaves nothing.
#[track_caller]
fn refused(node: &Node, what: &str, runtime_config: &Value, code: u32, names: &str) {
    let call = node.cni_call("ADD", what, runtime_config);
    let before = Left::by(node);
    let namespace = Ns::create(&call.container_id).unwrap();
    let output = call.run().unwrap();
    failed(&output, code, names);
    assert_eq!(Left::by(node), before, "{what}");
    let left = namespace.exec(&["ip", "-br", "link"]).unwrap();
    assert_eq!(left.lines().count(), 1, "{what}: only loopback is left in the pod: {left}");
}

#[track_caller]
fn failed(output: &CniOutput, code: u32, names: &str) {
    assert!(!output.success && output.answer["code"] == code, "{output:?}");
    assert!(output.answer["msg"].as_str().unwrap().contains(names), "{names} is missing: {output:?}");
}

fn frontends(node: &Node) -> Vec<String> {
    entries(node, maps::FRONTENDS)
}

/// Returns the entries in a fixed order: a hash map has none.
fn entries(node: &Node, map: &str) -> Vec<String> {
    let dump = node.map_dump(map).unwrap();
    let mut entries: Vec<String> = dump.as_array().unwrap().iter().map(Value::to_string).collect();
    entries.sort();
    entries
}

/// All that a pod with hostPorts could leave behind.
#[derive(Debug, PartialEq)]
struct Left {
    maps: Vec<Vec<String>>,
    links: String,
    routes: String,
    files: Vec<String>,
}

impl Left {
    fn by(node: &Node) -> Self {
        let listed = [maps::ENDPOINTS, maps::FRONTENDS, maps::NODES, maps::TRANSLATIONS];
        Self {
            maps: listed.map(|map| entries(node, map)).to_vec(),
            links: node.exec(&["ip", "-br", "link"]).unwrap(),
            routes: node.exec(&["ip", "route"]).unwrap(),
            files: files(&node.state_dir().join("endpoints")),
        }
    }
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
