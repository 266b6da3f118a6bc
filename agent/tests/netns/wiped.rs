//! What is removed under a running agent: its socket, its pins, and everything that a reboot
//! removes.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::lab::{Lab, Node, traffic};

use crate::reach;
use crate::sockets::wait_until;
use crate::sweep::{comes, goes, repairs};

const MEBIBYTE: u64 = 1 << 20;

#[test]
fn a_run_folder_that_is_removed_comes_back_with_the_socket() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    std::fs::remove_dir_all(node.socket().parent().unwrap()).unwrap();
    lab.add_namespace("node1-early").unwrap();
    let refused = node.cni_call("ADD", "early", &json!({})).run().unwrap();
    assert!(!refused.success && refused.answer["code"] == 11, "{refused:?}");
    assert!(wait_until(|| node.socket().exists().then_some(())).is_some());
    let pod = node.add_pod("pod").unwrap();
    reach(node, &pod);
}

/// The case of a container: the folder is removed on the node, but its mount stays.
#[test]
fn agent_without_its_run_folder_ends_and_the_next_serves() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    let run_dir = node.socket().parent().unwrap().to_owned();
    let source = node.cni_state_dir().join("run");
    std::fs::create_dir(&source).unwrap();
    mount(&["--bind", source.to_str().unwrap()], &run_dir);
    node.start_agent().unwrap();
    let pod = node.add_pod("pod").unwrap();
    // The log is in that folder.
    let mut log = std::fs::File::open(source.join("agent.log")).unwrap();
    std::fs::remove_dir_all(&source).unwrap();
    node.wait_for_agent_end().unwrap();
    let mut said = String::new();
    log.read_to_string(&mut said).unwrap();
    assert!(said.contains("mount of a folder that was removed"), "{said}");
    unmount(&run_dir);
    std::fs::create_dir(&source).unwrap();
    mount(&["--bind", source.to_str().unwrap()], &run_dir);
    node.start_agent().unwrap();
    node.add_pod("next").unwrap();
    reach(node, &pod);
    node.stop_agent().unwrap();
    unmount(&run_dir);
}

#[test]
fn pins_removed_under_traffic_come_back_and_nothing_ends() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let [client, near] = ["client", "near"].map(|name| node.add_pod(name).unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    let streams = [
        traffic::tcp_stream(&client, &near, near.address(), 8080).unwrap(),
        traffic::tcp_stream(&client, &far, far.address(), 8080).unwrap(),
        traffic::tcp_stream(&client, lab.world(), lab.world_address(), 8080).unwrap(),
        traffic::tcp_stream(node, &far, far.address(), 8081).unwrap(),
    ];
    let go_on = || streams.iter().for_each(|stream| stream.wait_for(4 * MEBIBYTE).unwrap());
    go_on();
    let before = pins(node);
    std::fs::remove_file(node.bpf_dir().join(maps::TRANSLATIONS)).unwrap();
    std::fs::remove_file(node.bpf_dir().join("links/to_uplink-eth0")).unwrap();
    go_on();
    come_back(node, &before);
    assert_eq!(repairs(node, "pin"), 2);
    std::fs::remove_dir_all(node.bpf_dir()).unwrap();
    go_on();
    come_back(node, &before);
    // The two pins from before, and then the folder with all that is in it.
    let links = before.iter().filter(|pin| pin.contains("/links/")).count();
    assert_eq!(repairs(node, "pin"), (2 + 1 + maps::ALL.len() + 1 + links) as u64, "{before:?}");
    // Only pinned objects outlive an agent. A new flow needs a second program, from the pinned
    // array of programs.
    node.kill_agent().unwrap();
    for address in near.addresses() {
        traffic::tcp_exchange(&client, &near, *address, 8090, MEBIBYTE).unwrap();
    }
    // A new agent finds all that the first one had, and has an array of its own.
    node.start_agent().unwrap();
    go_on();
    let lasting = |mut pins: Vec<String>| {
        pins.retain(|pin| !pin.contains("/programs/"));
        pins
    };
    assert_eq!(lasting(pins(node)), lasting(before));
    for stream in streams {
        assert!(stream.finish().unwrap().bytes > 0);
    }
}

#[test]
fn a_bpf_file_system_that_is_unmounted_is_done_without_or_said() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    std::fs::create_dir_all(node.bpf_dir()).unwrap();
    mount(&["-t", "bpf", "bpf"], node.bpf_dir());
    node.start_agent().unwrap();
    let pod = node.add_pod("pod").unwrap();
    let before = pins(node);
    // The agent holds the folder: without `--lazy` the kernel refuses.
    assert!(Command::new("umount").arg("--lazy").arg(node.bpf_dir()).status().unwrap().success());
    assert_eq!(pins(node), Vec::<String>::new());
    // The folder under the mount is itself on a BPF file system.
    come_back(node, &before);
    reach(node, &pod);
    // Mount a file system of another kind over it.
    mount(&["-t", "tmpfs", "tmpfs"], node.bpf_dir());
    comes(node, "pins-missing", "not on a BPF file system");
    lab.add_namespace("node1-late").unwrap();
    let refused = node.cni_call("ADD", "late", &json!({})).run().unwrap();
    assert!(!refused.success && refused.answer["code"] == 11, "{refused:?}");
    assert!(refused.answer["msg"].as_str().unwrap().contains("not on a BPF file system"), "{refused:?}");
    reach(node, &pod);
    unmount(node.bpf_dir());
    goes(node, "pins-missing");
    assert!(
        wait_until(|| node.cni_call("ADD", "late", &json!({})).run().unwrap().success.then_some(()))
            .is_some()
    );
}

#[test]
fn programs_for_a_new_tunnel_device_are_loaded_when_possible() {
    let object = tempfile::NamedTempFile::new().unwrap();
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/podwire-ebpf");
    std::fs::copy(built, object.path()).unwrap();
    let lab =
        Lab::builder().agent_arguments(&["--bpf-object", object.path().to_str().unwrap()]).build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    std::fs::write(object.path(), "none").unwrap();
    node.ip("link del podwire-vxlan").unwrap();
    comes(node, "reconcile-failed", "load the BPF object");
    std::fs::copy(built, object.path()).unwrap();
    // A datagram larger than the path goes through the device. The programs have the device's
    // number.
    let arrives = || traffic::udp_exchange(&pod, &far, far.address(), 8080, 3000).ok();
    goes(node, "reconcile-failed");
    assert!(wait_until(arrives).is_some(), "{}", node.agent_log_tail(20));
}

#[test]
fn a_limited_pod_is_guarded_again_before_the_node_list_has_come() {
    let lab = Lab::builder().node_file().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod_with("pod", &json!({ "bandwidth": { "egressRate": 100_000_000 } })).unwrap();
    let guards = || node.map_dump(maps::EGRESS_GUARDS).unwrap().as_array().unwrap().len();
    assert_eq!(guards(), 1);
    node.kill_agent().unwrap();
    std::fs::remove_dir_all(node.bpf_dir()).unwrap();
    lab.write_node_list("{").unwrap();
    node.spawn_agent().unwrap();
    comes(node, "node-list-unread", "decode the node list");
    assert_eq!(guards(), 1);
    traffic::udp_exchange(node, &pod, pod.address(), 8080, 100).unwrap();
}

/// After a reboot all that a node had in memory is gone, and what it had on disk is there.
#[test]
fn after_a_reboot_no_address_is_lost_and_none_is_taken_twice() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let far = lab.node(1).add_pod("far").unwrap();
    let names = ["one", "two", "three"];
    let before = names.map(|name| node.add_pod_with(name, &json!({})).unwrap());
    let addresses: Vec<_> = before.iter().map(|pod| pod.addresses().to_vec()).collect();
    node.kill_agent().unwrap();
    for pod in &before {
        node.ip(&format!("link del {}", pod.host_interface())).unwrap();
    }
    node.ip("link del podwire-vxlan\n").unwrap();
    for family in ["-4", "-6"] {
        node.exec(&["ip", family, "route", "flush", "table", "main", "proto", "112"]).unwrap();
    }
    std::fs::remove_dir_all(node.bpf_dir()).unwrap();
    std::fs::remove_dir_all(node.socket().parent().unwrap()).unwrap();
    std::fs::create_dir_all(node.socket().parent().unwrap()).unwrap();
    assert_eq!(files(node).len(), 3);

    node.start_agent().unwrap();
    assert_eq!(files(node), Vec::<String>::new(), "an address without a device was kept");
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap(), json!([]));
    // The runtime makes each pod again, in a new sandbox.
    let after = ["four", "five", "six", "seven"].map(|name| node.add_pod(name).unwrap());
    let anew: Vec<_> = after.iter().map(|pod| pod.addresses().to_vec()).collect();
    let next = |by| addresses[2].iter().map(|last| after_it(*last, by)).collect::<Vec<_>>();
    let expected: Vec<_> = (1..=4).map(next).collect();
    assert_eq!(anew, expected, "the agent did not go on after the last addresses");
    // The addresses from before the reboot are free.
    let again = node.add_pod_with("again", &json!({ "ips": addresses[0] })).unwrap();
    assert_eq!(again.addresses(), addresses[0]);
    for pod in after.iter().chain([&again]) {
        reach(pod, &far);
        reach(&far, pod);
    }
}

fn after_it(address: IpAddr, by: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from(u32::from(address) + u32::from(by)).into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) + u128::from(by)).into(),
    }
}

fn come_back(node: &Node, pins_before: &[String]) {
    let back = wait_until(|| (pins(node) == pins_before).then_some(()));
    assert!(back.is_some(), "{:?}\n{}", pins(node), node.agent_log_tail(20));
}

/// Returns the names of all pins, and of the objects behind them, in order.
fn pins(node: &Node) -> Vec<String> {
    let mut names = below(node.bpf_dir());
    for map in maps::ALL {
        let pin = node.bpf_dir().join(map);
        if pin.exists() {
            let shown =
                Command::new("bpftool").args(["-j", "map", "show", "pinned"]).arg(&pin).output().unwrap();
            let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
            names.push(format!("{map} {}", shown["id"]));
        }
    }
    // The kernel's own files in the root of a BPF file system.
    names.retain(|name| !name.ends_with(".debug"));
    names.sort();
    names
}

fn below(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let entries: Vec<_> = entries.map(|entry| entry.unwrap()).collect();
    let mut names: Vec<_> = entries.iter().map(|entry| entry.path().display().to_string()).collect();
    let folders = entries.iter().filter(|entry| entry.file_type().unwrap().is_dir());
    names.extend(folders.flat_map(|folder| below(&folder.path())));
    names
}

fn files(node: &Node) -> Vec<String> {
    below(&node.state_dir().join("endpoints"))
}

fn mount(arguments: &[&str], folder: &Path) {
    assert!(Command::new("mount").args(arguments).arg(folder).status().unwrap().success());
}

fn unmount(folder: &Path) {
    assert!(Command::new("umount").arg(folder).status().unwrap().success());
}
