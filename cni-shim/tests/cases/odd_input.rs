//! Configurations that no JSON decoder accepts, paths that are no network namespaces, and ADDs that
//! must not remove the link of an earlier one.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use podwire_cni::protocol::{Call, codes};
use serde_json::{Value, json};

use crate::lab::{Agent, Lab, failed};

#[test]
fn del_takes_what_only_del_can_clean() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    let start = format!(
        r#"{{"cniVersion": "1.1.0", "name": "podwire", "type": "podwire-cni", "socket": {}, "cni.dev/valid-attachments": []"#,
        json!(lab.socket())
    );
    let mappings: Vec<_> = (1..=16_384)
        .map(|port| json!({"hostPort": port, "containerPort": port, "protocol": "tcp", "hostIP": "10.200.0.1"}))
        .collect();
    let mappings = json!({ "portMappings": mappings });
    let odd = |key: &[u8], value: &[u8]| [start.as_bytes(), b", \"", key, b"\": ", value, b"}"].concat();
    let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    for (what, input, said) in [
        (
            "16,384 port mappings",
            odd(b"runtimeConfig", mappings.to_string().as_bytes()),
            "larger than 1048576 bytes",
        ),
        ("nesting of 200", odd(b"x", &deep(200)), "recursion limit"),
        ("nesting of a million", odd(b"x", &deep(1 << 20)), "larger than"),
        ("half a surrogate pair", odd(b"x", br#""\ud800""#), "not JSON"),
        ("half a pair in a key", odd(br"\ud800", b"1"), "not JSON"),
        ("no UTF-8", odd(b"x", b"\"\xff\""), "not JSON"),
        ("no UTF-8 in a key", odd(b"\xff", b"1"), "not JSON"),
    ] {
        lab.call("ADD").run().succeeded();
        lab.call("ADD").raw_input(&input).run().failed_with(codes::DECODING_FAILURE, said);
        for verb in ["STATUS", "GC", "DEL"] {
            let output = lab.call(verb).raw_input(&input).run();
            assert!(output.success, "{verb}, {what}: {output:?}");
        }
        lab.nothing_is_left();
    }
    assert_eq!(agent.requests().iter().filter(|call| matches!(call, Call::Del(_))).count(), 7);
}

#[test]
fn what_is_no_network_namespace_is_refused_at_once() {
    let lab = Lab::new();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::write(at("file"), "").unwrap();
    for (path, found) in [
        (at("fifo"), "a FIFO"),
        (at("socket"), "a socket"),
        (at("file"), "a file"),
        (at(""), "a folder"),
        ("/dev/zero".into(), "a device"),
    ] {
        let said = format!("CNI_NETNS {path} is {found}, not a network namespace");
        lab.call("ADD").env("CNI_NETNS", &path).run().failed_with(codes::INVALID_ENVIRONMENT, &said);
    }
    // A namespace, but not a network namespace.
    let ipc = lab.call("ADD").env("CNI_NETNS", "/proc/self/ns/ipc").run();
    ipc.failed_with(codes::INVALID_ENVIRONMENT, "CNI_NETNS /proc/self/ns/ipc");
    lab.nothing_is_left();
}

#[test]
fn a_refused_repetition_leaves_the_first_link() {
    let (lab, other) = (Lab::new(), Lab::new());
    let agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.call("ADD").run().succeeded();
    let links = || [lab.on_node("link show"), lab.in_pod("link show")].map(|links| names(&links));
    let before = links();
    let is_as_before = || assert_eq!(links(), before);
    other.ip_in_pod("link add eth0 type veth peer name other");
    let elsewhere = lab.call("ADD").env("CNI_NETNS", &other.netns()).run();
    elsewhere.failed_with(codes::INVALID_ENVIRONMENT, "CNI_IFNAME eth0 is already");
    is_as_before();
    drop(agent);
    lab.call("ADD").run().failed_with(codes::TRY_AGAIN_LATER, "not running");
    is_as_before();
    let agent = Agent::start(&lab, |_, _| failed(codes::INVALID_CONFIGURATION, "other portMappings"));
    lab.call("ADD").run().failed_with(codes::INVALID_CONFIGURATION, "other portMappings");
    is_as_before();
    assert!(matches!(agent.requests()[..], [Call::Propose(_)]));
    drop(agent);
    // An accepted ADD replaces the link, even in another namespace.
    other.ip_in_pod("link del eth0");
    let _agent = Agent::start(&lab, |lab, request| lab.serve(request));
    lab.call("ADD").env("CNI_NETNS", &other.netns()).run().succeeded();
    assert_eq!(lab.in_pod("link show dev lo").as_array().unwrap().len(), 1);
    other.in_pod("link show dev eth0");
}

/// Returns each link's number and address. A new link has different ones.
fn names(links: &Value) -> Vec<[String; 2]> {
    let links = links.as_array().unwrap().iter();
    links.map(|link| ["ifindex", "address"].map(|key| link[key].to_string())).collect()
}
