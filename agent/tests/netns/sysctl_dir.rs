//! An agent with a read-only `/proc/sys`, as in a container.

use xtask::lab::{Lab, traffic};

use crate::reach;

const MEBIBYTE: u64 = 1 << 20;
const FORWARDING: &str = "net/ipv4/ip_forward";
/// A script that runs a command with `/proc/sys` read-only. The network's part of it is writable
/// below the folder in the first argument.
const CONTAINER: &str = r#"set -e
mount --bind /proc/sys/net "$0/net"
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@""#;

#[test]
fn switches_are_set_or_the_way_to_set_them_is_told() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("net")).unwrap();
    let folder = folder.path().to_str().unwrap();
    let container = ["unshare", "--mount", "sh", "-c", CONTAINER, folder];
    let lab = |arguments: &[&str]| {
        let builder = Lab::builder().agents(false).agent_wrapper(&container);
        let lab = builder.agent_arguments(arguments).build().unwrap();
        lab.node(0).sysctl(FORWARDING, "0").unwrap();
        lab
    };
    let forwarding = |lab: &Lab| lab.node(0).exec(&["cat", &format!("/proc/sys/{FORWARDING}")]).unwrap();

    let without = lab(&[]);
    assert!(!without.node(0).run_second_agent().unwrap().success());
    let log = without.node(0).agent_log();
    let told = log.lines().find(|line| line.contains("ERROR")).unwrap();
    assert!(told.contains("/proc/sys/net/ipv4/ip_forward") && told.contains("--sysctl-dir"), "{told}");
    assert_eq!(forwarding(&without), "0\n");

    let with = lab(&["--sysctl-dir", folder]);
    with.nodes().iter().for_each(|node| node.start_agent().unwrap());
    assert_eq!(forwarding(&with), "1\n");
    let node = with.node(0);
    for (switch, value) in
        [("ipv4/conf/podwire-vxlan/rp_filter", "2"), ("ipv6/conf/podwire-vxlan/disable_ipv6", "0")]
    {
        assert_eq!(
            node.exec(&["cat", &format!("/proc/sys/net/{switch}")]).unwrap().trim(),
            value,
            "{switch}"
        );
    }
    let (pod, far) = (node.add_pod("pod").unwrap(), with.node(1).add_pod("far").unwrap());
    reach(&pod, &far);
    traffic::tcp_exchange(&pod, with.world(), with.world_address(), 8080, MEBIBYTE).unwrap();

    node.stop_agent().unwrap();
    let refused = node.uninstall().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--sysctl-dir"), "{said}");
    assert_eq!(forwarding(&with), "1\n", "{said}");
    // The node's earlier state is still known.
    let done = node.uninstall_with(&["--sysctl-dir", folder]).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(forwarding(&with), "0\n");
    assert!(!node.state_dir().exists());
}
