//! The source is the address that the node itself would use: the address of the uplink that the
//! route chooses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use podwire_common::abi::LINK_UPLINK;
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Node, Ns, connect, traffic};

use super::ask;
use crate::headers::of_pods;
use crate::sockets::{udp, unspecified, wait_until};

#[test]
fn each_uplink_gives_its_own_address_that_fits() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder()
            .nodes(1)
            .mode(mode)
            .agent_arguments(&["--uplink", "eth0,eth1"])
            .agents(false)
            .build()
            .unwrap();
        let node = lab.node(0);
        // A second network with two of the node's addresses, and a bridge that leads nowhere.
        let other = lab.add_namespace("other").unwrap();
        connect(node, "eth1", &other, "eth0").unwrap();
        node.ip("address add 192.168.7.1/24 dev eth1\naddress add 192.168.8.1/24 dev eth1\n").unwrap();
        node.ip(
            "link add docker0 type bridge\naddress add 172.17.0.1/16 dev docker0\nlink set dev docker0 up\n",
        )
        .unwrap();
        other.ip("address add 192.168.7.2/24 dev eth0\naddress add 192.168.8.2/24 dev eth0\naddress add 203.0.113.9/32 dev eth0\n").unwrap();
        node.ip("route add 203.0.113.9 via 192.168.8.2 src 192.168.7.1\n").unwrap();
        node.start_agent().unwrap();
        let pod = node.add_pod("client").unwrap();
        let table: [(&Ns, &str, IpAddr); 4] = [
            (lab.world(), "198.51.100.10", node.address()),
            (&other, "192.168.7.2", "192.168.7.1".parse().unwrap()),
            (&other, "192.168.8.2", "192.168.8.1".parse().unwrap()),
            (&other, "203.0.113.9", "192.168.7.1".parse().unwrap()),
        ];
        for (ns, address, expected) in table {
            let server = udp(ns, format!("{address}:53"));
            let client = udp(&pod, "0.0.0.0:0");
            let seen = ask(&client, &server, SocketAddr::new(address.parse().unwrap(), 53), address);
            assert_eq!(seen.ip(), expected, "{mode:?}: towards {address}");
        }
    }
}

/// The default route by both links of [`two_links_to_the_world`].
const TWO_NEXT_HOPS: &str =
    "route replace default nexthop via 10.200.0.254 dev eth0 nexthop via 192.168.7.2 dev eth1\n";
/// The same route with next hop objects.
const GROUP: &str = "nexthop add id 1 via 10.200.0.254 dev eth0\nnexthop add id 2 via 192.168.7.2 dev eth1\n\
    nexthop add id 10 group 1/2\nroute replace default nhid 10\n";

#[test]
fn each_next_hop_of_the_default_route_is_an_uplink() {
    for (route, policy) in [(TWO_NEXT_HOPS, "0"), (TWO_NEXT_HOPS, "1"), (GROUP, "0")] {
        let lab = two_links_to_the_world();
        let node = lab.node(0);
        node.sysctl("net/ipv4/fib_multipath_hash_policy", policy).unwrap();
        node.ip(route).unwrap();
        node.start_agent().unwrap();
        reached_by_both(&lab, &format!("{route} policy {policy}"));
    }
}

#[test]
fn a_next_hop_that_comes_later_is_an_uplink_too() {
    for route in [TWO_NEXT_HOPS, GROUP] {
        let lab = two_links_to_the_world();
        let node = lab.node(0);
        node.start_agent().unwrap();
        assert_eq!(uplinks(node), 1);
        node.ip(route).unwrap();
        wait_until(|| (uplinks(node) == 2).then_some(())).unwrap();
        reached_by_both(&lab, route);
        node.ip("route replace default via 10.200.0.254 dev eth0\n").unwrap();
        wait_until(|| (uplinks(node) == 1).then_some(())).unwrap();
    }
}

/// Asserts that a pod's flows to many addresses of the world leave by both links, each with that
/// link's address, and that no packet leaves with a pod's address.
fn reached_by_both(lab: &Lab, what: &str) {
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let captures = ["eth0", "eth1"].map(|link| Capture::start(node, link).unwrap());
    let mut seen = BTreeSet::new();
    for host in 100..132 {
        let address = IpAddr::from([198, 51, 100, host]);
        lab.world().ip(&format!("address add {address}/32 dev lo\n")).unwrap();
        let server = udp(lab.world(), (address, 53));
        let client = udp(&pod, "0.0.0.0:0");
        let to = SocketAddr::new(address, 53);
        let first = ask(&client, &server, to, "first");
        for _ in 0..3 {
            assert_eq!(ask(&client, &server, to, "and on"), first, "{what}");
        }
        seen.insert(first.ip());
        traffic::tcp_exchange(&pod, lab.world(), address, 8080, 1 << 16).unwrap();
    }
    assert_eq!(seen, [node.address(), IpAddr::from([192, 168, 7, 1])].into(), "{what}");
    for capture in captures {
        assert_eq!(of_pods(&capture.finish().unwrap()), None, "{what}");
    }
}

/// Returns the number of uplinks.
fn uplinks(node: &Node) -> usize {
    crate::links::kinds(node).into_iter().filter(|(_, kind)| *kind == LINK_UPLINK).count()
}

/// Returns a node with a second link to the world, and without an agent. The ends of that link are
/// 192.168.7.1 and 192.168.7.2.
fn two_links_to_the_world() -> Lab {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    connect(node, "eth1", lab.world(), "eth1").unwrap();
    node.ip("address add 192.168.7.1/24 dev eth1\n").unwrap();
    lab.world().ip("address add 192.168.7.2/24 dev eth1\n").unwrap();
    lab
}

/// Returns a node with two uplinks to the world. The ends of the second are 192.168.7.1 and
/// 192.168.7.2.
pub fn two_uplinks() -> Lab {
    let lab =
        Lab::builder().nodes(1).agent_arguments(&["--uplink", "eth0,eth1"]).agents(false).build().unwrap();
    let node = lab.node(0);
    connect(node, "eth1", lab.world(), "eth1").unwrap();
    node.ip("address add 192.168.7.1/24 dev eth1\n").unwrap();
    lab.world().ip("address add 192.168.7.2/24 dev eth1\n").unwrap();
    node.start_agent().unwrap();
    lab
}

#[test]
fn flow_that_the_route_moves_gets_the_other_uplinks_address() {
    let lab = two_uplinks();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "198.51.100.10:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let to = SocketAddr::new(lab.world_address(), 53);
    assert_eq!(ask(&client, &server, to, "by eth0").ip(), node.address());
    node.ip("route add 198.51.100.10 via 192.168.7.2\n").unwrap();
    assert_eq!(ask(&client, &server, to, "by eth1").ip(), IpAddr::from([192, 168, 7, 1]));
}

#[test]
fn flow_follows_its_route_to_another_uplink_and_back() {
    let lab = two_uplinks();
    let node = lab.node(0);
    traffic::ping(node, lab.world_address(), 56).unwrap();
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "198.51.100.10:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let to = SocketAddr::new(lab.world_address(), 53);
    let other = IpAddr::from([192, 168, 7, 1]);
    for (change, source) in [("", node.address()), ("add", other), ("del", node.address()), ("add", other)] {
        if !change.is_empty() {
            node.ip(&format!("route {change} 198.51.100.10 via 192.168.7.2\n")).unwrap();
        }
        // An entry of `FLOWS` is valid for 256 jiffies. Nothing is lost meanwhile: the old path
        // still works.
        let moved = wait_until(|| (ask(&client, &server, to, change).ip() == source).then_some(()));
        assert!(moved.is_some(), "{change}: the flow never left with {source}");
        for _ in 0..3 {
            assert_eq!(ask(&client, &server, to, "and stays").ip(), source, "{change}");
        }
    }
}

#[test]
fn flow_with_a_lost_node_address_gets_the_present_one() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    // The world sees an address that is not the node's InternalIP, so the test can remove it.
    node.ip("address add 10.200.0.77/24 dev eth0\nroute change default via 10.200.0.254 src 10.200.0.77\n")
        .unwrap();
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let to = SocketAddr::new(lab.world_address(), 53);
    assert_eq!(ask(&client, &server, to, "before").ip(), IpAddr::from([10, 200, 0, 77]));
    wait_until(|| knows(node, "10.200.0.77").then_some(())).unwrap();
    node.ip("route change default via 10.200.0.254\naddress del 10.200.0.77/24 dev eth0\n").unwrap();
    wait_until(|| (!knows(node, "10.200.0.77")).then_some(())).unwrap();
    // The agent updates the list of addresses before it removes the translations to one of them.
    let moved = wait_until(|| (ask(&client, &server, to, "after").ip() == node.address()).then_some(()));
    assert!(moved.is_some(), "the flow never left with the node's present address");
}

/// Each uplink has, beside an address that lasts, one of each kind that is no source: temporary (RFC
/// 8981), deprecated (RFC 4862 section 5.5.4), tentative.
#[test]
fn ipv6_source_is_no_address_that_goes_or_is_tentative() {
    let lab =
        Lab::builder().nodes(1).agent_arguments(&["--uplink", "eth0,eth1"]).agents(false).build().unwrap();
    let node = lab.node(0);
    connect(node, "eth1", lab.world(), "eth1").unwrap();
    lab.world().ip("address add 2001:db8:7::2/64 dev eth1 nodad\n").unwrap();
    for (link, network) in [("eth0", "2001:db8:6"), ("eth1", "2001:db8:7")] {
        let set = |name, value| node.sysctl(&format!("net/ipv6/conf/{link}/{name}"), value).unwrap();
        let add = |address: &str| node.ip(&format!("address add {network}::{address}\n")).unwrap();
        let shows = |kind: &str, address: &str| {
            let command = ["ip", "-6", "address", "show", "dev", link].into_iter();
            let command: Vec<_> = command.chain(kind.split(' ')).collect();
            node.exec(&command).unwrap().contains(&format!("{network}:{address}")).then_some(())
        };
        set("use_tempaddr", "2");
        // The kernel makes the temporary address from this one.
        add(&format!("1/64 dev {link} nodad mngtmpaddr"));
        wait_until(|| shows("temporary -tentative", "")).expect("the kernel makes the address");
        set("accept_dad", "1");
        // The kernel asks once a second.
        set("dad_transmits", "1000");
        add(&format!("e/64 dev {link}"));
        shows("tentative", ":e/").expect("the address is tentative");
        // The newest address of a link comes first in the kernel's list.
        add(&format!("d/64 dev {link} nodad preferred_lft 0"));
        shows("deprecated", ":d/").expect("the address is deprecated");
    }
    let internal = node.addresses()[1];
    lab.underlay().ip(&format!("route add 2001:db8:6::/64 via {internal}\n")).unwrap();
    node.start_agent().unwrap();
    let pod = node.add_pod("client").unwrap();
    let [of_eth0, of_eth1, there] =
        ["2001:db8:6::1", "2001:db8:7::1", "2001:db8:7::2"].map(|text| text.parse::<IpAddr>().unwrap());
    // A node that prefers its temporary addresses lends pods the first of the others. Otherwise
    // pods have the node's own choice, which looks like the world's address.
    for (preference, by_eth0, port) in [("2", internal, 8080), ("0", of_eth0, 8081)] {
        for (link, to, expected) in [("eth0", lab.world_addresses()[1], by_eth0), ("eth1", there, of_eth1)] {
            node.sysctl(&format!("net/ipv6/conf/{link}/use_tempaddr"), preference).unwrap();
            assert_eq!(own_source(node, to) != expected, preference == "2", "{link}: the node's own choice");
            let what = format!("{link} with use_tempaddr {preference}");
            let server = udp(lab.world(), (to, 53));
            let client = udp(&pod, "[::]:0");
            assert_eq!(ask(&client, &server, SocketAddr::new(to, 53), &what).ip(), expected, "{what}");
            let exchange = traffic::tcp_exchange(&pod, lab.world(), to, port, 1 << 16).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), expected, "{what}");
        }
    }
}

/// Returns the source that the node's own sockets have towards an address.
fn own_source(node: &Node, to: IpAddr) -> IpAddr {
    let socket = udp(node, (unspecified(to), 0));
    socket.connect((to, 53)).unwrap();
    socket.local_addr().unwrap().ip()
}

/// Returns whether the agent has an address among the node's own.
fn knows(node: &Node, address: &str) -> bool {
    let octets: Vec<_> =
        address.parse::<std::net::Ipv4Addr>().unwrap().octets().map(|byte| byte.to_string()).into();
    let dump = node.map_dump("NODES").unwrap().to_string();
    dump.contains(&format!("255,255,{}", octets.join(",")))
}
