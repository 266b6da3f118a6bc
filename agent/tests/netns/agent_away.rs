//! An agent that stands still while many plugins call it. Each call ends with "try again later",
//! and the agent carries none of them out afterwards.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use podwire_cni::protocol::{self, Add, Attachment, Bandwidth, Call, Reply, Request};
use podwire_common::names::{VETH_PREFIX, maps};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xtask::lab::{Lab, Node, Ns, traffic};

use crate::sockets::wait_until;

/// More calls than the agent serves at once (128).
const CALLS: usize = 150;

#[test]
fn calls_to_a_still_agent_try_again_later_and_leave_nothing() {
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
    // The plugin removed the deleted pod's link itself, since the agent stood still. The agent
    // releases the endpoint when it next compares the kernel with its state.
    let after = wait_until(|| Some(Left::by(node)).filter(|left| *left == before.without_one()));
    assert!(after.is_some(), "{:?}, not {before:?} less one\n{}", Left::by(node), node.agent_log_tail(20));
    for name in &names[..3] {
        assert!(node.cni_call("ADD", name, &json!({})).run().unwrap().success);
    }
    traffic::tcp_exchange(node, &staying, staying.address(), 8080, 1 << 20).unwrap();
}

#[test]
fn add_whose_plugin_has_died_is_not_carried_out() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let add = made_by_hand(node, "dead");
    signal(node, Signal::STOP);
    for _ in 0..2 {
        drop(asked(node, Call::Add(Box::new(add.clone()))));
    }
    signal(node, Signal::CONT);
    let pod = node.add_pod("pod").unwrap();
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(), 2);
    assert_eq!(pod.address().to_string(), "10.244.1.2", "a dropped ADD has taken an address");
    // An ADD with a waiting plugin is served.
    let reply: Reply = protocol::read_frame(&mut asked(node, Call::Add(Box::new(add)))).unwrap();
    assert!(matches!(&reply, Reply::Added(_)), "{reply:?}");
}

/// Like the test above, but the agent waits for its disk, and other calls wait for the agent.
#[test]
fn waiting_add_is_not_begun_when_its_plugin_has_given_up() {
    const A_MOMENT: Duration = Duration::from_millis(300);
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let [stuck, waiting] = ["stuck", "waiting"].map(|container| made_by_hand(node, container));
    // The file is a named pipe: opening it for writing waits for a reader.
    let file = node.state_dir().join("endpoints").join(&stuck.host_interface).with_extension("tmp");
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let unknown = Attachment { container_id: "unknown".into(), interface: "eth0".into() };
    let mut first = asked(node, Call::Add(Box::new(stuck)));
    let linked = || node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len() == 2;
    assert!(wait_until(|| linked().then_some(())).is_some());
    // A CHECK waits until all ADDs are on disk. Later calls wait for the CHECK.
    let mut second = asked(node, Call::Check(unknown));
    std::thread::sleep(A_MOMENT);
    let third = asked(node, Call::Add(Box::new(waiting)));
    std::thread::sleep(A_MOMENT);
    drop(third);
    std::thread::sleep(A_MOMENT);
    let reader = std::fs::File::open(&file).unwrap();
    let reply: Reply = protocol::read_frame(&mut first).unwrap();
    assert!(matches!(&reply, Reply::Failed(_)), "a named pipe cannot be synced: {reply:?}");
    let reply: Reply = protocol::read_frame(&mut second).unwrap();
    assert!(matches!(&reply, Reply::Failed(_)), "the attachment is unknown: {reply:?}");
    drop(reader);
    // The first ADD got an address and gave it back. The next address is still free.
    assert_eq!(node.add_pod("pod").unwrap().address().to_string(), "10.244.1.3");
}

/// Makes a pod's link as a plugin does, and returns the request that follows.
fn made_by_hand(node: &Node, container_id: &str) -> Add {
    let attachment = Attachment { container_id: container_id.into(), interface: "eth0".into() };
    let host_interface = attachment.host_interface();
    let (host_mac, pod_mac) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b");
    let pair =
        format!("{host_interface} address {host_mac} type veth peer name {container_id} address {pod_mac}");
    node.ip(&format!("link add {pair}")).unwrap();
    Add {
        attachment,
        netns: "/run/netns/none".into(),
        host_interface,
        pod_mac: pod_mac.into(),
        host_mac: host_mac.into(),
        addresses: Vec::new(),
        mtu: None,
        port_mappings: Vec::new(),
        pod: None,
        network: "podwire".into(),
        bandwidth: Bandwidth::default(),
    }
}

/// Sends a request and returns its connection.
fn asked(node: &Node, call: Call) -> UnixStream {
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    protocol::write_frame(&mut stream, &Request::new(call)).unwrap();
    stream
}

fn signal(node: &Node, signal: Signal) {
    let pid = Pid::from_raw(node.agent_pid().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// The numbers of things that calls could leave behind.
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
        // A pod has an entry for each of its addresses.
        Self { links: self.links - 1, files: self.files - 1, endpoints: self.endpoints - 2, ..self.clone() }
    }
}
