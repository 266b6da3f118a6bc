//! Kernel switches and links that others turn off while the agent runs.

use serde_json::json;
use xtask::lab::{Lab, Mode, Node, traffic};

use crate::idle_clients::get;
use crate::reach;
use crate::sockets::wait_until;
use crate::sweep::{comes, conditions, metric, repairs};

const MEBIBYTE: u64 = 1 << 20;
const FORWARDING: &str = "net/ipv4/ip_forward";
const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";
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
    let of_link = |family, name| format!("net/{family}/conf/{}/{name}", pod.host_interface());
    let [link, link6, has6] = [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "disable_ipv6")]
        .map(|(family, name)| of_link(family, name));
    // The switch, its value, and the value that another tool sets.
    let of_devices = [
        (link.as_str(), "1", "0"),
        ("net/ipv4/conf/eth0/forwarding", "1", "0"),
        ("net/ipv4/conf/podwire-vxlan/forwarding", "1", "0"),
        ("net/ipv4/conf/podwire-vxlan/rp_filter", "2", "0"),
        (link6.as_str(), "1", "0"),
        ("net/ipv6/conf/eth0/forwarding", "1", "0"),
        ("net/ipv6/conf/podwire-vxlan/forwarding", "1", "0"),
        ("net/ipv6/conf/podwire-vxlan/accept_ra", "0", "1"),
        ("net/ipv6/conf/podwire-vxlan/addr_gen_mode", "1", "0"),
    ];
    // Without IPv6, a link has no IPv6 addresses and routes either.
    let without_ipv6 = [(has6.as_str(), "0", "1"), ("net/ipv6/conf/podwire-vxlan/disable_ipv6", "0", "1")];
    let of_nodes = [FORWARDING, FORWARDING6].map(|name| (name, "1", "0"));
    // `all/forwarding` is another name of `ip_forward`. With either, the kernel sets `forwarding`
    // of all devices, too.
    for off in [
        &of_nodes[..1],
        &[("net/ipv4/conf/all/forwarding", "1", "0")],
        &of_nodes[1..],
        &of_devices,
        &without_ipv6,
    ] {
        off.iter().for_each(|(name, _, other)| node.sysctl(name, other).unwrap());
        for (name, value, _) in of_nodes.iter().chain(&of_devices).chain(&without_ipv6) {
            let is_set = || (switch(node, name) == *value).then_some(());
            assert!(wait_until(is_set).is_some(), "{off:?}: {name}\n{}", node.agent_log_tail(20));
        }
        let has_routes = || {
            let routes = node.exec(&["ip", "-6", "route", "show", "proto", "112"]).unwrap();
            let to = [pod.addresses()[1].to_string(), "fd00:10:244:2::/64".to_owned()];
            to.iter().all(|to| routes.contains(to)).then_some(())
        };
        assert!(wait_until(has_routes).is_some(), "{off:?}\n{}", node.agent_log_tail(20));
        traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
        reach(&pod, &far);
        reach(node, &far);
        reach(lab.node(1), &pod);
        reach(&pod, node);
    }
    let set_again = of_nodes.len() + 1 + of_devices.len() + without_ipv6.len();
    assert_eq!(metric(node, "podwire_switches_set_again_total"), set_again.to_string());
    let log = node.agent_log();
    for family in ["IPv4", "IPv6"] {
        let name = format!("forwarding of {family}");
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains(&name)), "{name}: {log}");
    }
    assert_eq!(conditions(node), [""; 0]);
}

#[test]
fn a_pod_is_forwarded_for_whatever_the_default_is() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let defaults = ["ipv4", "ipv6"].map(|family| format!("net/{family}/conf/default/forwarding"));
    defaults.iter().for_each(|name| node.sysctl(name, "0").unwrap());
    let pod = node.add_pod("pod").unwrap();
    traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8080, MEBIBYTE).unwrap();
    reach(&pod, lab.node(1));
    for name in &defaults {
        assert_eq!(switch(node, name), "0", "the agent changed {name}");
    }
    for family in ["ipv4", "ipv6"] {
        assert_eq!(switch(node, &format!("net/{family}/conf/{}/forwarding", pod.host_interface())), "1");
    }
}

#[test]
fn switches_that_cannot_be_set_are_why_the_agent_is_not_ready() {
    let container = ["unshare", "--mount", "sh", "-c", CONTAINER, "sh"];
    // In VXLAN mode the agent would not start: it has to set switches of the tunnel's device.
    let builder = Lab::builder().nodes(1).mode(Mode::Direct).agents(false).agent_wrapper(&container);
    let lab = builder.build().unwrap();
    let node = lab.node(0);
    for name in [FORWARDING, FORWARDING6] {
        node.sysctl(name, "1").unwrap();
    }
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
    let routes = || {
        let shown = ["-4", "-6"].map(|family| node.exec(&["ip", family, "route"]).unwrap()).concat();
        pod.addresses().iter().filter(|to| shown.contains(&format!("{to} "))).count()
    };
    assert_eq!(routes(), 0);
    assert!(wait_until(|| (routes() == 2).then_some(())).is_some(), "{}", node.agent_log_tail(20));
    reach(&pod, &far);
    reach(node, &pod);
    let mut check = pod.call().with_command("CHECK");
    check.config["prevResult"] = pod.result().clone();
    let checked = check.run().unwrap();
    assert!(checked.success, "{checked:?}");
    assert_eq!(repairs(node, "link"), 1);
}

fn switch(node: &Node, name: &str) -> String {
    node.exec(&["cat", &format!("/proc/sys/{name}")]).unwrap().trim().to_owned()
}
