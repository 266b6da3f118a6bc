//! Destinations that see the pod's own address.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use xtask::lab::{Lab, Node, Pod, traffic};

use super::ask;
use crate::sockets::{udp, unspecified, wait_until};
use crate::sweep::{comes, goes};
use crate::{FAMILIES, Place as _, world_end};

/// The world's other networks, and its address in each.
const OTHERS: [(&str, &str); 2] =
    [("192.0.2.0/24", "192.0.2.10/24"), ("2001:db8:1::/64", "2001:db8:1::10/64")];
/// Networks with the world's address in the lab.
const WORLDS: [&str; 2] = ["198.51.100.0/28", "2001:db8::/123"];

#[test]
fn networks_are_excluded_and_included_again_without_a_restart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let excluded = OTHERS.map(|(network, _)| network).join(",");
    let lab = Lab::builder()
        .nodes(1)
        .agent_arguments(&["--non-masquerade-cidrs", &excluded, "--non-masquerade-file", path])
        .build()
        .unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let others = FAMILIES.map(|family| {
        let (network, address) = OTHERS[family];
        let (_, world) = world_end(&lab, family);
        route_to_pods(&lab, family);
        let address: IpNet = address.parse().unwrap();
        lab.world().add_address("eth0", address.addr(), address.prefix_len()).unwrap();
        lab.underlay().ip(&format!("route add {network} via {world}\n")).unwrap();
        address.addr()
    });
    let sees_pod = |address: IpAddr, why: &str| {
        let own = pod.end(usize::from(address.is_ipv6())).1;
        assert_eq!(seen_as(&lab, &pod, address), own, "{address} {why}");
    };

    let pid = node.agent_pid();
    for family in FAMILIES {
        let (world, own) = (world_end(&lab, family).1, node.end(family).1);
        sees_pod(others[family], "excluded by the option");
        assert_eq!(seen_as(&lab, &pod, world), own);
    }

    let [first, second] = WORLDS;
    std::fs::write(path, format!("# partners\n{first}   # theirs\n\n  {second}\n")).unwrap();
    wait_for(node, "NETWORKS", 4);
    lab.world_addresses().into_iter().for_each(|world| sees_pod(world, "excluded by the file"));

    // With a line that does not decode, the agent keeps the last good state and reports the line.
    for bad in ["198.51.100.x", "2001:db8::x/64"] {
        std::fs::write(path, format!("{first}\n{bad}\n")).unwrap();
        comes(node, "non-masquerade-file", bad);
        lab.world_addresses().into_iter().for_each(|world| sees_pod(world, "as before"));
    }

    // One family is included again, then the other.
    std::fs::write(path, first).unwrap();
    wait_for(node, "NETWORKS", 3);
    sees_pod(world_end(&lab, 0).1, "still excluded");
    assert_eq!(seen_as(&lab, &pod, world_end(&lab, 1).1), node.end(1).1, "included again");
    goes(node, "non-masquerade-file");
    std::fs::write(path, "").unwrap();
    wait_for(node, "NETWORKS", 2);
    for family in FAMILIES {
        let world = world_end(&lab, family).1;
        assert_eq!(seen_as(&lab, &pod, world), node.end(family).1, "{world} included again");
        sees_pod(others[family], "the option stays");
    }
    assert_eq!(node.agent_pid(), pid, "without a restart");
}

#[test]
fn pods_keep_their_ipv6_addresses_where_an_option_says_so() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--masquerade-ipv6", "false"]).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    route_to_pods(&lab, 1);
    for (family, seen) in [(0, node.end(0).1), (1, pod.end(1).1)] {
        let (world, address) = world_end(&lab, family);
        assert_eq!(seen_as(&lab, &pod, address), seen);
        let exchange = traffic::tcp_exchange(&pod, world, address, 8080, 1 << 16).unwrap();
        assert_eq!(exchange.peer_seen_by_server.ip(), seen);
    }
}

/// Gives the world a way to the pods of the first node.
fn route_to_pods(lab: &Lab, family: usize) {
    let (node, address) = (lab.node(0), lab.node(0).end(family).1);
    lab.underlay().ip(&format!("route replace {} via {address}\n", node.pod_cidrs()[family])).unwrap();
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
    assert_eq!(seen_as(&lab, &pod, METADATA.parse().unwrap()), node.address(), "behind a router");

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
    route_to_pods(&lab, 0);
    lab.world().ip(&format!("address add {METADATA}/32 dev eth0\n")).unwrap();
    lab.underlay().ip(&format!("route add {METADATA}/32 via 198.51.100.10\n")).unwrap();
    assert_eq!(seen_as(&lab, &pod, METADATA.parse().unwrap()), pod.address());
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
fn seen_as(lab: &Lab, pod: &Pod, address: IpAddr) -> IpAddr {
    let server = udp(lab.world(), (address, 53));
    let client = udp(pod, (unspecified(address), 0));
    ask(&client, &server, SocketAddr::new(address, 53), &address.to_string()).ip()
}

fn wait_for(node: &Node, map: &str, entries: usize) {
    let there =
        wait_until(|| (node.map_dump(map).unwrap().as_array().unwrap().len() == entries).then_some(()));
    assert!(there.is_some(), "{map} never had {entries} entries");
}
