//! An agent that stands still while many ask: each is told to try again, and nothing of it is done afterwards.

use std::os::unix::net::UnixStream;

use podwire_cni::protocol::{self, Add, Attachment, Bandwidth, Call, Request, host_interface};
use podwire_common::names::{VETH_PREFIX, maps};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::lab::{Lab, Node, Ns, traffic};

use crate::sockets::wait_until;

/// More than the agent serves at once (128).
const CALLS: usize = 150;

#[test]
fn many_calls_of_an_agent_that_stands_still_are_told_to_try_again_and_leave_nothing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [staying, going] = ["staying", "going"].map(|name| node.add_pod(name).unwrap());
    let before = Left::by(node);
    let names: Vec<String> = (0..CALLS).map(|number| format!("pod{number}")).collect();
    let namespaces: Vec<_> = names
        .iter()
        .map(|name| Ns::create(&node.cni_call("ADD", name, &json!({})).container_id).unwrap())
        .collect();
    signal(node, Signal::STOP);
    std::thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || {
                let refused = node.cni_call("ADD", name, &json!({})).run().unwrap();
                // "Try again later" (CNI specification, error codes).
                assert!(!refused.success && refused.answer["code"] == 11, "{name}: {refused:?}");
            });
        }
        scope.spawn(|| going.delete().unwrap());
    });
    assert!(namespaces.iter().all(|ns| ns.exec(&["ip", "-br", "link"]).unwrap().lines().count() == 1));
    signal(node, Signal::CONT);
    // The one that was deleted goes as soon as the agent has looked.
    let after = wait_until(|| Some(Left::by(node)).filter(|left| *left == before.without_one()));
    assert!(after.is_some(), "{:?} and not {before:?} but one\n{}", Left::by(node), node.agent_log_tail(20));
    for name in &names[..3] {
        assert!(node.cni_call("ADD", name, &json!({})).run().unwrap().success);
    }
    traffic::tcp_exchange(node, &staying, staying.address(), 8080, 1 << 20).unwrap();
}

#[test]
fn an_add_whose_plugin_has_died_in_the_meantime_is_not_carried_out() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let attachment = Attachment { container_id: "dead".into(), interface: "eth0".into() };
    let host_interface = host_interface(&attachment);
    let (host_mac, pod_mac) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    node.ip(&format!(
        "link add {host_interface} address {host_mac} type veth peer name peer address {pod_mac}"
    ))
    .unwrap();
    let add = Add {
        attachment,
        netns: "/run/netns/dead".into(),
        host_interface,
        pod_mac: pod_mac.into(),
        host_mac: host_mac.into(),
        addresses: Vec::new(),
        mtu: None,
        port_mappings: Vec::new(),
        pod: None,
        network: None,
        bandwidth: Bandwidth::default(),
    };
    signal(node, Signal::STOP);
    for _ in 0..2 {
        let mut stream = UnixStream::connect(node.socket()).unwrap();
        protocol::write_frame(&mut stream, &Request::new(Call::Add(Box::new(add.clone())))).unwrap();
    }
    signal(node, Signal::CONT);
    let pod = node.add_pod("pod").unwrap();
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(), 1);
    assert_eq!(pod.address().to_string(), "10.244.1.2", "an address was given to nobody");
    // Somebody who waits is served.
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    protocol::write_frame(&mut stream, &Request::new(Call::Add(Box::new(add)))).unwrap();
    let reply: protocol::Reply = protocol::read_frame(&mut stream).unwrap();
    assert!(matches!(&reply, protocol::Reply::Added(_)), "{reply:?}");
}

fn signal(node: &Node, signal: Signal) {
    let pid = Pid::from_raw(node.agent_pid().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// What calls could leave behind, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    links: usize,
    files: usize,
    endpoints: usize,
    descriptors: usize,
}

impl Left {
    fn by(node: &Node) -> Self {
        let count = |folder: &std::path::Path| std::fs::read_dir(folder).unwrap().count();
        let links = node.exec(&["ip", "-brief", "link"]).unwrap();
        let descriptors = format!("/proc/{}/fd", node.agent_pid().unwrap());
        Self {
            links: links.lines().filter(|line| line.starts_with(VETH_PREFIX)).count(),
            files: count(&node.state_dir().join("endpoints")),
            endpoints: node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(),
            descriptors: count(descriptors.as_ref()),
        }
    }

    fn without_one(&self) -> Self {
        Self { links: self.links - 1, files: self.files - 1, endpoints: self.endpoints - 1, ..self.clone() }
    }
}
