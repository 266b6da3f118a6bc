//! Queueing disciplines of other tools in the place of clsact.

use xtask::lab::{Builder, Lab, Node, Ns, traffic};

use crate::idle_clients::get;
use crate::sockets::wait_until;
use crate::sweep::{comes, metric, repairs, told};

const MEBIBYTE: u64 = 1 << 20;
const OBSTRUCTED: &str = "uplink-obstructed";
const REATTACHED: &str = "podwire_programs_reattached_total";

/// Returns a builder of labs on a kernel without TCX: as far as the agent can tell, a kernel that
/// reports version 2.6 has none.
pub fn without_tcx() -> Builder {
    // No cgroup: for such a kernel, the library would attach programs there that outlive the agent.
    Lab::builder().agent_wrapper(&["setarch", "--uname-2.6"]).agent_arguments(&["--cgroup-dir", "/proc"])
}

#[test]
fn disciplines_in_the_place_of_clsact_are_replaced() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let [pod, shared, last] = ["pod", "shared", "last"].map(|name| node.add_pod(name).unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    for device in [pod.host_interface(), "podwire-vxlan"] {
        replace(node, device, "ingress");
    }
    replace(node, shared.host_interface(), "ingress_block 22 egress_block 23 clsact");
    for (device, programs) in [
        (pod.host_interface(), ["from_pod", "to_pod"]),
        (shared.host_interface(), ["from_pod", "to_pod"]),
        ("podwire-vxlan", ["from_overlay", "to_overlay"]),
    ] {
        assert!(wait_until(|| has(node, device, programs).then_some(())).is_some(), "{device}");
    }
    // Use the programs of both directions, past the stack and through it.
    for pod in [&pod, &shared] {
        traffic::tcp_exchange(pod, &far, far.address(), 8080, MEBIBYTE).unwrap();
        traffic::tcp_exchange(&far, pod, pod.address(), 8080, MEBIBYTE).unwrap();
        traffic::tcp_exchange(pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
        traffic::tcp_exchange(node, pod, pod.address(), 8080, MEBIBYTE).unwrap();
    }
    traffic::tcp_exchange(node, &far, far.address(), 8080, MEBIBYTE).unwrap();
    // In the next round the agent attaches again only the filter that `next_round` removes.
    next_round(node, &last);
    assert_eq!(metric(node, REATTACHED), (2 * 3 + 1).to_string(), "{}", node.agent_log_tail(30));
    assert_eq!(repairs(node, "discipline"), 3, "one on each device");
}

#[test]
fn an_uplink_without_tcx_is_not_taken_from_other_tools() {
    let lab = without_tcx().build().unwrap();
    let node = lab.node(0);
    let uplink = ["from_uplink", "to_uplink"];
    assert!(has(node, "eth0", uplink), "{}", node.agent_log());
    comes(node, "host-processes", "do not reach pods' hostPorts");
    let (pod, last) = (node.add_pod("pod").unwrap(), node.add_pod("last").unwrap());
    let talks = || traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();

    // The uplink has no other tool's filters.
    replace(node, "eth0", "ingress");
    assert!(wait_until(|| has(node, "eth0", uplink).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    talks();

    node.kill_agent().unwrap();
    replace(node, "eth0", "ingress");
    let filter = "tc filter add dev eth0 ingress pref 5 protocol ip bpf direct-action bytecode";
    node.exec(&[&words(filter)[..], &["1,6 0 0 4294967295"]].concat()).unwrap();
    let is_told = || Some(get(node, "/readyz")).filter(|said| said.contains("503") && said.contains("eth0"));
    node.spawn_agent().unwrap();
    let readyz = wait_until(is_told).unwrap_or_else(|| panic!("{}", node.agent_log_tail(20)));
    assert!(readyz.contains("clsact") && readyz.contains("tc qdisc del dev eth0 ingress"), "{readyz}");
    next_round(node, &last);
    let obstructed = comes(node, OBSTRUCTED, "eth0");
    assert_eq!(told(node, OBSTRUCTED), [obstructed], "another uplink is reported too");
    let shown = node.exec(&words("tc filter show dev eth0 ingress")).unwrap();
    assert!(shown.contains("pref 5") && !shown.contains("uplink"), "{shown}");

    node.exec(&words("tc qdisc del dev eth0 ingress")).unwrap();
    let is_ready = || Some(get(node, "/readyz")).filter(|said| said.contains("200"));
    assert!(wait_until(is_ready).is_some(), "{}", node.agent_log_tail(20));
    assert_eq!(told(node, OBSTRUCTED), [""; 0]);
    assert!(has(node, "eth0", uplink));
    talks();
    // The same while the agent runs.
    replace(node, "eth0", "ingress");
    node.exec(&[&words(filter)[..], &["1,6 0 0 4294967295"]].concat()).unwrap();
    assert!(wait_until(is_told).is_some(), "{}", node.agent_log_tail(20));
}

/// Replaces a device's discipline.
fn replace(ns: &Ns, device: &str, discipline: &str) {
    let there = ["clsact", "ingress"].iter().any(|kind| {
        let delete = ["tc", "qdisc", "del", "dev", device, kind];
        ns.output(&delete).unwrap().status.success()
    });
    assert!(there, "{device} has neither");
    ns.exec(&[&["tc", "qdisc", "add", "dev", device][..], &words(discipline)].concat()).unwrap();
}

/// Returns whether a device has these programs at ingress and egress, each in its own direction
/// only.
pub fn has(ns: &Ns, device: &str, [ingress, egress]: [&str; 2]) -> bool {
    let show = |direction| ns.exec(&["tc", "filter", "show", "dev", device, direction]).unwrap();
    let (from, to) = (show("ingress"), show("egress"));
    from.contains(ingress) && !from.contains(egress) && to.contains(egress) && !to.contains(ingress)
}

/// Removes a pod's filter and waits until the agent attaches it again. By then the agent has
/// handled all earlier changes, too.
fn next_round(node: &Node, pod: &xtask::lab::Pod) {
    let device = pod.host_interface();
    node.exec(&["tc", "filter", "del", "dev", device, "egress"]).unwrap();
    let is_back = || has(node, device, ["from_pod", "to_pod"]).then_some(());
    assert!(wait_until(is_back).is_some(), "{}", node.agent_log_tail(20));
}

fn words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}
