//! Many pods at once, as a node that is drained and filled again sees them.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use podwire_cni::protocol::{Attachment, host_interface};
use podwire_common::names::{ROUTE_PROTOCOL, VETH_PREFIX, maps};
use xtask::lab::{Lab, Node, Ns, Pod};

/// Of 253 that the node has.
const PODS: usize = 200;
/// So many that addresses which leaked in a round before would be missed.
const ROUNDS: usize = 2;
const AT_ONCE: usize = 8;

#[test]
fn two_hundred_pods_come_and_go_eight_at_a_time_and_leave_nothing() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    // The first one leaves what stays: where the next address is looked for.
    node.add_pod("first").unwrap().delete().unwrap();
    let before = Left::by(node);
    for round in 0..if crate::soak() { 10 } else { ROUNDS } {
        let pods = Mutex::new(Vec::new());
        at_once(PODS, |number| {
            let pod = node.add_pod(&format!("pod{round}x{number}")).unwrap();
            receive_at_once(node, &pod);
            pods.lock().unwrap().push(pod);
        });
        let pods: Vec<Pod> = pods.into_inner().unwrap();
        let addresses: BTreeSet<IpAddr> = pods.iter().map(Pod::address).collect();
        assert_eq!(addresses.len(), PODS, "an address was given twice");
        let gateway = node.gateway();
        assert!(!addresses.contains(&gateway), "the gateway's address was given to a pod");
        assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(), PODS);
        let pods = Mutex::new(pods);
        at_once(PODS, |_| {
            let pod = pods.lock().unwrap().pop().unwrap();
            pod.delete().unwrap();
        });
        assert_eq!(Left::by(node), before);
    }
}

/// An ADD waits for the disk while others go on.
#[test]
fn pods_whose_files_cannot_be_written_are_undone_while_others_come() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.add_pod("first").unwrap().delete().unwrap();
    let before = Left::by(node);
    let file = |pod: &str| {
        let container_id = node.cni_call("ADD", pod, &serde_json::json!({})).container_id;
        let name = host_interface(&Attachment { container_id, interface: "eth0".into() });
        node.state_dir().join("endpoints").join(name)
    };
    let pods = Mutex::new(Vec::new());
    at_once(4 * AT_ONCE, |number| {
        if number % 2 == 1 {
            let name = format!("refused{number}");
            // Where the file is to be written before it gets its name.
            let obstacle = file(&name).with_extension("tmp");
            std::fs::create_dir(&obstacle).unwrap();
            let refused = format!("{:#}", node.add_pod(&name).map(drop).unwrap_err());
            let named = file(&name).with_extension("json");
            assert!(refused.contains(&format!("write {}", named.display())), "{refused}");
            std::fs::remove_dir(&obstacle).unwrap();
        }
        let pod = node.add_pod(&format!("pod{number}")).unwrap();
        receive_at_once(node, &pod);
        pods.lock().unwrap().push(pod);
    });
    let pods: Vec<Pod> = pods.into_inner().unwrap();
    let addresses: BTreeSet<IpAddr> = pods.iter().map(Pod::address).collect();
    assert_eq!(addresses.len(), 4 * AT_ONCE, "an address was given twice");
    pods.into_iter().for_each(|pod| pod.delete().unwrap());
    assert_eq!(Left::by(node), before);
}

/// ADD has answered: what the node sends from now on arrives, the first packet included.
fn receive_at_once(node: &Node, pod: &Pod) {
    let bind = |ns: &Ns, address| ns.enter(|| UdpSocket::bind(address)).unwrap().unwrap();
    let (client, server) = (bind(node, "0.0.0.0:0"), bind(pod, "0.0.0.0:8080"));
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    client.send_to(b"at once", (pod.address(), 8080)).unwrap();
    let received = server.recv(&mut [0; 100]);
    assert_eq!(received.ok(), Some(7), "the node's first packet to {} was lost", pod.address());
}

/// Does it so many times, eight at a time.
fn at_once(count: usize, action: impl Fn(usize) + Sync) {
    let action = &action;
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(action));
        }
    });
}

/// All that pods could leave behind.
#[derive(Debug, PartialEq, Eq)]
pub struct Left {
    links: Vec<String>,
    routes: Vec<String>,
    pins: BTreeSet<PathBuf>,
    files: BTreeSet<PathBuf>,
    endpoints: serde_json::Value,
}

impl Left {
    pub fn by(node: &Node) -> Self {
        let lines = |command: &[&str]| -> Vec<String> {
            node.exec(command).unwrap().lines().map(|line| line.trim().to_owned()).collect()
        };
        let links = lines(&["ip", "-brief", "link"]);
        assert!(!links.iter().any(|link| link.starts_with(VETH_PREFIX)), "{links:?}");
        Self {
            links,
            routes: lines(&["ip", "route", "show", "table", "all", "proto", &ROUTE_PROTOCOL.to_string()]),
            pins: below(node.bpf_dir()),
            files: below(node.state_dir()),
            endpoints: node.map_dump(maps::ENDPOINTS).unwrap(),
        }
    }
}

/// Every file, however deep.
fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        } else {
            found.insert(path);
        }
    }
    found
}
