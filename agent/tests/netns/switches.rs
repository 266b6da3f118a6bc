//! Kernel switches and links that others turn off while the agent runs.

use serde_json::json;
use xtask::lab::{Lab, Mode, Node, traffic};

use crate::idle_clients::get;
use crate::sockets::wait_until;
use crate::sweep::{comes, conditions, metric, repairs};

const MEBIBYTE: u64 = 1 << 20;
const FORWARDING: &str = "net/ipv4/ip_forward";
/// A script that runs a command with `/proc/sys` read-only.
const CONTAINER: &str = r#"set -e
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@""#;

#[test]
fn switches_that_others_turn_off_are_set_again() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let link = format!("net/ipv4/conf/{}/forwarding", pod.host_interface());
    let of_devices = [
        (link.as_str(), "1"),
        ("net/ipv4/conf/eth0/forwarding", "1"),
        ("net/ipv4/conf/podwire-vxlan/forwarding", "1"),
        ("net/ipv4/conf/podwire-vxlan/rp_filter", "2"),
        ("net/ipv6/conf/podwire-vxlan/disable_ipv6", "1"),
    ];
    // `all/forwarding` is another name of `ip_forward`. With either, the kernel sets `forwarding`
    // of all devices, too.
    for off in [&[FORWARDING][..], &["net/ipv4/conf/all/forwarding"], &of_devices.map(|(name, _)| name)] {
        off.iter().for_each(|name| node.sysctl(name, "0").unwrap());
        for (name, value) in [(FORWARDING, "1")].iter().chain(&of_devices) {
            let is_set = || (switch(node, name) == *value).then_some(());
            assert!(wait_until(is_set).is_some(), "{off:?}: {name}\n{}", node.agent_log_tail(20));
        }
        traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
        traffic::tcp_exchange(&pod, &far, far.address(), 8080, MEBIBYTE).unwrap();
        traffic::tcp_exchange(lab.node(1), &pod, pod.address(), 8080, MEBIBYTE).unwrap();
    }
    assert_eq!(metric(node, "podwire_switches_set_again_total"), (2 + of_devices.len()).to_string());
    let log = node.agent_log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("ip_forward")), "{log}");
}

#[test]
fn a_pod_is_forwarded_for_whatever_the_default_is() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    node.sysctl("net/ipv4/conf/default/forwarding", "0").unwrap();
    let pod = node.add_pod("pod").unwrap();
    traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
    assert_eq!(switch(node, "net/ipv4/conf/default/forwarding"), "0", "the agent changed the default");
}

#[test]
fn switches_that_cannot_be_set_are_why_the_agent_is_not_ready() {
    let container = ["unshare", "--mount", "sh", "-c", CONTAINER, "sh"];
    // In VXLAN mode the agent would not start: it has to set switches of the tunnel's device.
    let builder = Lab::builder().nodes(1).mode(Mode::Direct).agents(false).agent_wrapper(&container);
    let lab = builder.build().unwrap();
    let node = lab.node(0);
    node.sysctl(FORWARDING, "1").unwrap();
    node.start_agent().unwrap();
    let pod = node.add_pod("pod").unwrap();
    node.sysctl(FORWARDING, "0").unwrap();
    comes(node, "switches", FORWARDING);
    let told = wait_until(|| Some(get(node, "/readyz")).filter(|said| said.contains("503")));
    let told = told.unwrap_or_else(|| panic!("{}", node.agent_log_tail(20)));
    assert!(told.contains(FORWARDING) && told.contains("--sysctl-dir"), "{told}");
    let mut status = node.cni_call("STATUS", "pod", &json!({}));
    status.config["cniVersion"] = json!("1.1.0");
    let refused = status.run().unwrap();
    // "And the pods that are there may have limited connectivity" (CNI specification).
    assert!(!refused.success && refused.answer["code"] == 51, "{refused:?}");
    node.sysctl(FORWARDING, "1").unwrap();
    assert!(
        wait_until(|| get(node, "/readyz").contains("200").then_some(())).is_some(),
        "{}",
        get(node, "/readyz")
    );
    traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
    assert_eq!(conditions(node), [""; 0]);
    // The agent changed nothing, so a removal has nothing to undo.
    node.stop_agent().unwrap();
    assert!(node.uninstall().unwrap().status.success());
    assert_eq!(switch(node, FORWARDING), "1");
}

#[test]
fn a_pods_link_that_others_set_down_is_set_up_again() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    node.ip(&format!("link set {} down", pod.host_interface())).unwrap();
    let route = || node.exec(&["ip", "route", "show", &pod.address().to_string()]).unwrap();
    assert_eq!(route(), "");
    assert!(wait_until(|| (!route().is_empty()).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    traffic::tcp_exchange(&pod, &far, far.address(), 8080, MEBIBYTE).unwrap();
    traffic::tcp_exchange(node, &pod, pod.address(), 8080, MEBIBYTE).unwrap();
    let mut check = pod.call().with_command("CHECK");
    check.config["prevResult"] = pod.result().clone();
    let checked = check.run().unwrap();
    assert!(checked.success, "{checked:?}");
    assert_eq!(repairs(node, "link"), 1);
}

fn switch(node: &Node, name: &str) -> String {
    node.exec(&["cat", &format!("/proc/sys/{name}")]).unwrap().trim().to_owned()
}
