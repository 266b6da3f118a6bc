//! The plugin and the agent together: what a runtime may ask for, and what CHECK finds.

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, Pod, traffic};

use crate::footprint::Footprint;

// CNI specification, "Error", and the plugin's own from 100 on.
const INVALID_ENVIRONMENT: u32 = 4;
const INVALID_CONFIGURATION: u32 = 7;
const ADDRESS_UNAVAILABLE: u32 = 102;
const CHECK_FAILED: u32 = 103;

#[test]
fn a_fixed_address_is_given_if_it_is_free_and_of_this_node() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let first = node.add_pod_with("first", &json!({ "ips": ["10.244.1.77/24"] })).unwrap();
    assert_eq!(first.address().to_string(), "10.244.1.77");
    for (what, address) in [
        ("taken", "10.244.1.77/24"),
        ("another-nodes", "10.244.2.9/24"),
        ("the-gateways", "10.244.1.1/24"),
        ("the-networks", "10.244.1.0/24"),
        ("broadcast", "10.244.1.255/24"),
    ] {
        refused(
            node,
            what,
            &json!({ "ips": [address] }),
            None,
            ADDRESS_UNAVAILABLE,
            address.split('/').next().unwrap(),
        );
    }
    // Go's spelling of the key works as well.
    let second = node.add_pod_with("second", &json!({ "Ips": ["10.244.1.78"] })).unwrap();
    assert_eq!(second.address().to_string(), "10.244.1.78");
}

#[test]
fn a_repeated_add_that_is_refused_costs_the_pod_nothing() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let port = |number: u16| json!([{ "hostPort": number, "containerPort": 8080, "protocol": "tcp" }]);
    let pod = node.add_pod_with("pod", &json!({ "portMappings": port(9088) })).unwrap();
    let far = lab.node(1).add_pod("far").unwrap();
    let before = Footprint::of(node, &[&pod]);
    let other = lab.add_namespace("other").unwrap();
    other.ip("link add eth0 type veth peer name peer").unwrap();
    let repeated = |runtime_config: Value| node.cni_call("ADD", "pod", &runtime_config);
    let mut elsewhere = repeated(json!({ "portMappings": port(9088) }));
    elsewhere.netns = other.path();
    let limit = json!({ "portMappings": port(9088), "bandwidth": { "egressRate": 1_000_000 } });
    for (what, call, code) in [
        ("hostPorts", repeated(json!({ "portMappings": port(9089) })), INVALID_CONFIGURATION),
        ("bandwidth", repeated(limit), INVALID_CONFIGURATION),
        (
            "address",
            repeated(json!({ "portMappings": port(9088), "ips": ["10.244.1.99"] })),
            ADDRESS_UNAVAILABLE,
        ),
        ("namespace", elsewhere, INVALID_ENVIRONMENT),
    ] {
        let output = call.run().unwrap();
        assert!(!output.success && output.answer["code"] == code, "{what}: {output:?}");
        assert_eq!(Footprint::of(node, &[&pod]).differences(&before), [""; 0], "{what}");
        traffic::tcp_exchange(&far, &pod, pod.address(), 8080, 1 << 16).unwrap();
    }
    // While the agent is away, a repeated ADD cannot replace the link.
    node.kill_agent().unwrap();
    let output = repeated(json!({ "portMappings": port(9088) })).run().unwrap();
    assert!(!output.success && output.answer["code"] == 11, "{output:?}");
    traffic::tcp_exchange(&far, &pod, pod.address(), 8080, 1 << 16).unwrap();
    node.start_agent().unwrap();
    let again = node.add_pod_again("pod", &json!({ "portMappings": port(9088) })).unwrap();
    assert_eq!(again.address(), pod.address());
    traffic::tcp_exchange(&far, &again, again.address(), 8080, 1 << 16).unwrap();
}

#[test]
fn an_mtu_that_does_not_fit_the_uplink_is_refused() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    refused(node, "mtu", &json!({}), Some(1500), INVALID_CONFIGURATION, "1450");
}

#[test]
fn check_names_what_is_not_as_it_was_made() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let (address, host, uplink) = (pod.address(), pod.host_interface(), node.address());
    check(&pod, None);
    node.ip(&format!("route del {address}/32")).unwrap();
    check(&pod, Some("route"));
    node.ip(&format!("route add {address}/32 dev {host} scope link src {uplink} proto 112")).unwrap();
    check(&pod, None);
    node.exec(&["tc", "filter", "del", "dev", host, "egress"]).unwrap();
    check(&pod, Some("to_pod is not attached"));
    node.restart_agent().unwrap();
    check(&pod, None);
    pod.ip("route del default").unwrap();
    check(&pod, Some("default"));
    pod.ip(&format!("route add default via {} dev eth0", pod.gateway())).unwrap();
    check(&pod, None);
    node.ip(&format!("link set {host} down")).unwrap();
    check(&pod, Some("down"));
}

/// Asserts that an ADD for a pod is refused with a code and with a message that names something,
/// and that it leaves nothing.
#[track_caller]
fn refused(node: &Node, what: &str, runtime_config: &Value, mtu: Option<u32>, code: u32, names: &str) {
    let before = node.map_dump(maps::ENDPOINTS).unwrap();
    let links = node.exec(&["ip", "-br", "link"]).unwrap();
    let namespace = xtask::lab::Ns::create(&node.cni_call("ADD", what, runtime_config).container_id).unwrap();
    let mut call = node.cni_call("ADD", what, runtime_config);
    if let Some(mtu) = mtu {
        call.config["mtu"] = mtu.into();
    }
    let output = call.run().unwrap();
    assert!(!output.success && output.answer["code"] == code, "{what}: {output:?}");
    assert!(output.answer["msg"].as_str().unwrap().contains(names), "{what}: {output:?}");
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), before, "{what}");
    assert_eq!(node.exec(&["ip", "-br", "link"]).unwrap(), links, "{what}");
    let left = namespace.exec(&["ip", "-br", "link"]).unwrap();
    assert_eq!(left.lines().count(), 1, "{what}: only loopback is left in the pod: {left}");
}

/// Asserts that CHECK succeeds, or that it fails with a message that names the fault.
#[track_caller]
fn check(pod: &Pod, fault: Option<&str>) {
    let mut call = pod.call().with_command("CHECK");
    call.config["prevResult"] = pod.result().clone();
    let output = call.run().unwrap();
    match fault {
        None => assert!(output.success, "{output:?}"),
        Some(fault) => {
            assert!(!output.success && output.answer["code"] == CHECK_FAILED, "{fault}: {output:?}");
            let message = format!("{} {}", output.answer["msg"], output.answer["details"]);
            assert!(message.contains(fault), "{fault}: {output:?}");
        }
    }
}
