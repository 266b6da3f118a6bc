//! Destinations that see the pod's own address.

use std::net::SocketAddr;

use xtask::lab::{Lab, Node, Pod};

use super::ask;
use crate::sockets::{udp, wait_until};
use crate::sweep::{comes, goes};

#[test]
fn networks_are_excluded_and_included_again_without_a_restart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let lab = Lab::builder()
        .nodes(1)
        .agent_arguments(&["--non-masquerade-cidrs", "192.0.2.0/24", "--non-masquerade-file", path])
        .build()
        .unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    lab.underlay().ip(&format!("route replace {} via {}\n", node.pod_cidr(), node.address())).unwrap();
    lab.world().ip("address add 192.0.2.10/24 dev eth0\n").unwrap();
    lab.underlay().ip("route add 192.0.2.0/24 via 198.51.100.10\n").unwrap();

    let pid = node.agent_pid();
    assert_eq!(seen_as(&lab, &pod, "192.0.2.10"), pod.address(), "excluded by the option");
    assert_eq!(seen_as(&lab, &pod, "198.51.100.10"), node.address());

    std::fs::write(path, "# partners\n198.51.100.0/28   # theirs\n\n").unwrap();
    wait_for(node, "NETWORKS", 2);
    assert_eq!(seen_as(&lab, &pod, "198.51.100.10"), pod.address(), "excluded by the file");

    // With a line that does not decode, the agent keeps the last good state and reports the line.
    std::fs::write(path, "198.51.100.0/28\n198.51.100.x\n").unwrap();
    comes(node, "non-masquerade-file", "198.51.100.x");
    assert_eq!(seen_as(&lab, &pod, "198.51.100.10"), pod.address(), "as before");

    std::fs::write(path, "").unwrap();
    wait_for(node, "NETWORKS", 1);
    assert_eq!(seen_as(&lab, &pod, "198.51.100.10"), node.address(), "included again");
    goes(node, "non-masquerade-file");
    assert_eq!(seen_as(&lab, &pod, "192.0.2.10"), pod.address(), "the option stays");
    assert_eq!(node.agent_pid(), pid, "without a restart");
}

/// A cloud's metadata service, which answers only the node's address.
const METADATA: &str = "169.254.169.254";

#[test]
fn a_metadata_service_sees_the_nodes_address() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    lab.world().ip(&format!("address add {METADATA}/32 dev eth0\n")).unwrap();
    lab.underlay().ip(&format!("route add {METADATA}/32 via 198.51.100.10\n")).unwrap();
    assert_eq!(seen_as(&lab, &pod, METADATA), node.address(), "behind a router");

    lab.underlay().ip(&format!("address add {METADATA}/16 dev br0\n")).unwrap();
    node.ip("route add 169.254.0.0/16 dev eth0\n").unwrap();
    let server = udp(lab.underlay(), format!("{METADATA}:80"));
    let client = udp(&pod, "0.0.0.0:0");
    let seen = ask(&client, &server, SocketAddr::new(METADATA.parse().unwrap(), 80), "on the link");
    assert_eq!(seen.ip(), node.address(), "on the link");
}

#[test]
fn a_metadata_service_is_excluded_by_an_option() {
    let network = format!("{METADATA}/32");
    let lab = Lab::builder().nodes(1).agent_arguments(&["--non-masquerade-cidrs", &network]).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    lab.underlay().ip(&format!("route replace {} via {}\n", node.pod_cidr(), node.address())).unwrap();
    lab.world().ip(&format!("address add {METADATA}/32 dev eth0\n")).unwrap();
    lab.underlay().ip(&format!("route add {METADATA}/32 via 198.51.100.10\n")).unwrap();
    assert_eq!(seen_as(&lab, &pod, METADATA), pod.address());
}

#[test]
fn a_link_local_server_of_the_node_sees_the_pods_address() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    // Node-local DNS uses a dummy device, which this kernel lacks.
    node.ip("link add nodelocaldns type bridge\naddress add 169.254.20.10/32 dev nodelocaldns\n").unwrap();
    let server = udp(node, "169.254.20.10:53");
    let client = udp(&pod, "0.0.0.0:0");
    let seen = ask(&client, &server, "169.254.20.10:53".parse().unwrap(), "node-local DNS");
    assert_eq!(seen.ip(), pod.address());
}

/// Returns the source that a server of the world sees when the pod asks it from an unused port.
fn seen_as(lab: &Lab, pod: &Pod, address: &str) -> std::net::IpAddr {
    let server = udp(lab.world(), format!("{address}:53"));
    let client = udp(pod, "0.0.0.0:0");
    ask(&client, &server, SocketAddr::new(address.parse().unwrap(), 53), address).ip()
}

fn wait_for(node: &Node, map: &str, entries: usize) {
    let there =
        wait_until(|| (node.map_dump(map).unwrap().as_array().unwrap().len() == entries).then_some(()));
    assert!(there.is_some(), "{map} never had {entries} entries");
}
