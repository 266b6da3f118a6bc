//! STATUS: whether the agent can serve ADD, and if not, why.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::{CniOutput, Lab, Node};

use crate::sweep::{comes, condition, goes};

use super::{Container, UNAVAILABLE, UNAVAILABLE_AND_LIMITED, failed, lab_for_one_pod, status, succeeded};

#[test]
fn status_follows_the_agent() {
    let lab = Lab::builder().agents(false).build().unwrap();
    let node = lab.node(0);
    failed(&status(node), UNAVAILABLE, "no agent accepts");
    let list = lab.node_list().unwrap();
    node.start_agent().unwrap();
    assert_eq!(succeeded(status(node)), Value::Null);
    let pod = node.add_pod("pod").unwrap();

    // The Node list lacks this node. Its pods keep their network.
    let mut without = list.clone();
    without["items"].as_array_mut().unwrap().retain(|item| item["metadata"]["name"] != node.name());
    lab.write_node_list(&without.to_string()).unwrap();
    let output = until(node, |output| !output.success);
    failed(&output, UNAVAILABLE, "node1, is not in the node list");
    pod.exec(&["ping", "-c", "1", "-W", "5", &lab.world_address().to_string()]).unwrap();
    lab.write_node_list(&list.to_string()).unwrap();
    succeeded(until(node, |output| output.success));

    node.kill_agent().unwrap();
    failed(&status(node), UNAVAILABLE, "no agent accepts");
}

#[test]
fn a_node_without_an_uplink_says_that_its_pods_may_be_cut_off() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (address, uplink) = (node.address(), node.uplink());
    let pod = node.add_pod("pod").unwrap();
    node.ip(&format!("address flush dev {uplink}")).unwrap();
    // The kernel leaves routes of IPv6 when the address is gone, so the link still leads out.
    comes(node, "internal-ip-absent", &address.to_string());
    assert_eq!(condition(node, "no-uplink"), 0);
    node.exec(&["ip", "-6", "route", "flush", "dev", uplink]).unwrap();
    comes(node, "no-uplink", "no link has this node's InternalIP");
    let output = until(node, |output| !output.success);
    failed(&output, UNAVAILABLE_AND_LIMITED, "no link has this node's InternalIP");
    pod.delete().unwrap();
    // No pod is left that could be cut off.
    failed(&status(node), UNAVAILABLE, "no link has this node's InternalIP");
    node.ip(&format!("address add {address}/24 dev {uplink}\nroute add default via 10.200.0.254\n")).unwrap();
    succeeded(until(node, |output| output.success));
    goes(node, "no-uplink");
}

#[test]
fn a_pod_cidr_that_is_used_up_is_told() {
    let lab = lab_for_one_pod();
    let node = lab.node(0);
    node.start_agent().unwrap();
    let only = Container::new(node, "only");
    succeeded(status(node));
    only.add();
    failed(&status(node), UNAVAILABLE, "all 1 addresses of podCIDR 10.244.1.0/30 are in use");
    succeeded(only.run("DEL", None));
    succeeded(status(node));
}

#[test]
fn a_data_path_that_cannot_be_mended_is_told() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    // Another tool removes the tunnel's device and takes its port.
    node.ip("link del podwire-vxlan").unwrap();
    let taken = node.enter(|| UdpSocket::bind("0.0.0.0:8472")).unwrap().unwrap();
    let output = until(node, |output| !output.success);
    failed(&output, UNAVAILABLE_AND_LIMITED, "its UDP port 8472 belongs to a socket");
    assert_eq!(condition(node, "not-set-up"), 0, "it was set up before");
    drop(taken);
    succeeded(until(node, |output| output.success));
    pod.delete().unwrap();
}

/// Waits for a status. The agent looks at changes of the kernel every ten seconds.
fn until(node: &Node, good: impl Fn(&CniOutput) -> bool) -> CniOutput {
    let start = Instant::now();
    loop {
        let output = status(node);
        if good(&output) || start.elapsed() > Duration::from_secs(60) {
            return output;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
