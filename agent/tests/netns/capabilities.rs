//! The agent in an unprivileged container: root with a few capabilities.

use std::net::{IpAddr, SocketAddr};

use podwire_common::names::maps;
use serde_json::json;
use xtask::lab::traffic::{self, Route};
use xtask::lab::{Lab, Mode, Node, Pod};

use crate::host_processes::LOOPBACKS;
use crate::idle_clients::get;
use crate::sockets::wait_until;
use crate::{Place as _, world_end};

const MEBIBYTE: u64 = 1 << 20;
/// The switches of a node that forwards, of each family.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// The capabilities that the agent needs. The manifest grants them, and DAC_OVERRIDE for folders of
/// another owner. Without one of them the agent fails, first at this:
///
/// - `bpf`: the agent cannot make a map.
/// - `net_admin`: the agent cannot set `ip_forward`. Later, devices, routes, filters, the
///   firewall's rules and connection tracking would fail.
/// - `perfmon`: the verifier refuses the programs ("pointer arithmetic with it prohibited for
///   !root").
pub const NEEDED: &str = "--bounding-set=-all,+bpf,+net_admin,+perfmon";
/// The same capabilities in `CapEff`: bits 12, 38 and 39 (include/uapi/linux/capability.h).
const MASK: &str = "000000c000001000";

#[test]
fn agent_lives_with_the_manifests_capabilities_in_vxlan_mode() {
    whole_life(Mode::Vxlan);
}

#[test]
fn agent_lives_with_the_manifests_capabilities_in_direct_mode() {
    whole_life(Mode::Direct);
}

/// Runs everything that an agent ever does, and asserts that the kernel refuses none of it.
fn whole_life(mode: Mode) {
    let lab = Lab::builder()
        .mode(mode)
        .agents(false)
        .agent_wrapper(&["setpriv", "--no-new-privs", "--inh-caps=-all", NEEDED])
        .agent_arguments(&["--uplink-xdp", "generic"])
        .build()
        .unwrap();
    let node = lab.node(0);
    FORWARDING.iter().for_each(|switch| node.sysctl(switch, "0").unwrap());
    lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.agent_pid().unwrap())).unwrap();
    for line in [format!("CapEff:\t{MASK}"), format!("CapBnd:\t{MASK}"), "NoNewPrivs:\t1".to_owned()] {
        assert!(status.lines().any(|said| said == line), "no {line} in {status}");
    }

    let everything = json!({
        "ips": ["10.244.1.77/24", "fd00:10:244:1::77/64"],
        "portMappings": [{ "hostPort": 9088, "containerPort": 8080, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 200_000_000, "ingressBurst": 2_000_000, "egressRate": 200_000_000, "egressBurst": 2_000_000 },
    });
    let pod = node.add_pod_with("pod", &everything).unwrap();
    let [near, far] = [node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap()];
    talk(&lab, &pod, &near, &far);
    check(&pod);
    let mut gc = node.cni_call("GC", "near", &json!({}));
    gc.config["cniVersion"] = json!("1.1.0");
    gc.config["cni.dev/valid-attachments"] = json!([
        { "containerID": pod.call().container_id, "ifname": "eth0" },
        { "containerID": near.call().container_id, "ifname": "eth0" },
    ]);
    let collected = gc.run().unwrap();
    assert!(collected.success, "{collected:?}");

    taken_away_and_put_back(node, &near, mode);
    lab.nodes().iter().for_each(|node| node.restart_agent().unwrap());
    talk(&lab, &pod, &near, &far);
    check(&pod);
    let shown = get(node, "/metrics");
    for metric in ["process_open_fds ", "podwire_table_memory_bytes{", "podwire_dropped_packets_total{"] {
        assert!(shown.contains(metric), "no {metric} in {shown}");
    }
    near.delete().unwrap();
    assert_eq!(node.map_dump(maps::ENDPOINTS).unwrap().as_array().unwrap().len(), 2);

    node.stop_agent().unwrap();
    let done = node.uninstall().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{said}");
    for switch in FORWARDING {
        let left = node.exec(&["cat", &format!("/proc/sys/{switch}")]).unwrap();
        assert_eq!(left, "0\n", "{switch}: {said}");
    }
    for text in [node.agent_log(), lab.node(1).agent_log(), said] {
        let refused = |line: &&str| {
            ["ERROR", "not permitted", "Permission denied"].iter().any(|word| line.contains(word))
        };
        let refused: Vec<_> = text.lines().filter(refused).collect();
        assert!(refused.is_empty(), "{mode:?}: {refused:#?}");
    }
}

/// Exchanges traffic on every path of a pod: past the stack and through it, and to a hostPort from
/// outside and from a process of the node.
fn talk(lab: &Lab, pod: &Pod, near: &Pod, far: &Pod) {
    let node = lab.node(0);
    for (family, loopback) in LOOPBACKS.into_iter().enumerate() {
        let ends = [near.end(family), far.end(family), node.end(family), world_end(lab, family)];
        for (server, address) in ends {
            traffic::tcp_exchange(pod, server, address, 8080, MEBIBYTE).unwrap();
        }
        for (client, address) in [(&**node, loopback), (lab.world(), node.addresses()[family])] {
            let route = Route::translated(SocketAddr::new(address, 9088), 8080);
            traffic::tcp_exchange_on(client, pod, route, MEBIBYTE).unwrap();
        }
    }
}

fn check(pod: &Pod) {
    let mut check = pod.call().with_command("CHECK");
    check.config["prevResult"] = pod.result().clone();
    let checked = check.run().unwrap();
    assert!(checked.success, "{checked:?}");
}

fn taken_away_and_put_back(node: &Node, pod: &Pod, mode: Mode) {
    node.exec(&["tc", "qdisc", "del", "dev", pod.host_interface(), "clsact"]).unwrap();
    for address in pod.addresses() {
        node.ip(&format!("route del {address} dev {}", pod.host_interface())).unwrap();
    }
    std::fs::remove_dir_all(node.bpf_dir()).unwrap();
    if mode == Mode::Vxlan {
        node.ip("link del podwire-vxlan").unwrap();
    }
    let back = wait_until(|| {
        let routes = ["-4", "-6"].map(|family| node.exec(&["ip", family, "route"]).unwrap()).concat();
        let filters = node.exec(&["tc", "filter", "show", "dev", pod.host_interface(), "ingress"]).unwrap();
        let tunnel = mode == Mode::Direct || node.exec(&["ip", "link", "show", "podwire-vxlan"]).is_ok();
        let leads = |address: &IpAddr| routes.contains(&format!("{address} dev {}", pod.host_interface()));
        let there = pod.addresses().iter().all(leads)
            && filters.contains("from_pod")
            && node.bpf_dir().join("links/from_uplink-eth0").exists();
        (there && tunnel).then_some(())
    });
    assert!(back.is_some(), "{}", node.agent_log_tail(30));
}
