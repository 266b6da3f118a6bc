//! Nodes with several links: the role of each link, and what happens to a pod's packet there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_common::abi::{LINK_INNER, LINK_SIDE, LINK_UPLINK, LINK_WITHOUT_PROGRAMS};
use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC, maps};
use podwire_common::reason::{Drop, Path};
use serde_json::json;
use xtask::lab::frames::{self, Capture};
use xtask::lab::traffic::Route;
use xtask::lab::{Lab, Mode, Node, Ns, Pod, connect, traffic};

use crate::check::{Counted, Row, check};
use crate::disciplines::{has, without_tcx};
use crate::headers::of_pods;
use crate::packets::{Packet, Vxlan, inner, udp};
use crate::packets6::Packet6;
use crate::refused::grown;
use crate::snat::ask;
use crate::sockets::{self, unspecified, wait_until};
use crate::sweep::{comes, goes};
use crate::{FAMILIES, Place as _, v4, v6, world_end};

/// The node's end of a link to a storage host, and the storage host's end.
const HERE: [IpAddr; 2] = side(50, 1);
const STORAGE: [IpAddr; 2] = side(50, 2);
/// The node's end of another link, and the end of the host behind it.
const OTHER_HERE: [IpAddr; 2] = side(60, 1);
const OTHER_THERE: [IpAddr; 2] = side(60, 2);
const BRIDGE: [IpAddr; 2] = docker_network(1);
const CONTAINER: [IpAddr; 2] = docker_network(2);

#[test]
fn a_side_link_translates_pods_and_answers_host_ports() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let storage = storage_host(&lab, "eth1");
        let_be(node, "eth1", LINK_SIDE);
        // The kernel first looks whether another host has it.
        await_address(node, HERE[1]);
        let pod = node.add_pod_with("pod", &host_port()).unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let capture = Capture::start(node, "eth1").unwrap();
        for family in FAMILIES {
            let there = (&storage, STORAGE[family]);
            let to_storage = Row::new("a pod to the storage host", pod.end(family), there)
                .seen_as(HERE[family])
                .takes(&[(0, Path::SnatOut), (0, Path::SnatIn)]);
            check(
                &lab,
                &[
                    Row { learns_mtu: mode == Mode::Vxlan, ..to_storage },
                    Row::new("the node itself", (node, HERE[family]), there),
                    Row::new("pods elsewhere", pod.end(family), far.end(family)),
                ],
            );
            let before = Counted::quiet(&lab);
            let route = Route::translated((HERE[family], 8080).into(), 80);
            let exchange = traffic::tcp_exchange_on(&storage, &pod, route, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), STORAGE[family], "{mode:?}");
            let ways = [(0, Path::HostPortIn), (0, Path::HostPortOut)];
            Counted::quiet(&lab).since(&before).expect(&ways, &[]).unwrap();
        }
        assert_eq!(of_pods(&capture.finish().unwrap()), None, "{mode:?}");
    }
}

#[test]
fn tunnel_packets_are_taken_by_uplinks_only() {
    let lab = Lab::builder().build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    let container = docker(&lab);
    let_be(node, "eth1", LINK_SIDE);
    let_be(node, "docker0", LINK_INNER);
    let (pod, far) = (node.add_pod("pod").unwrap(), lab.node(1).add_pod("far").unwrap());
    let capture = Capture::start(&pod, "eth0").unwrap();
    let forged = Packet::new(v4(far.address()), v4(pod.address()), udp(4000, 5000));
    let forged6 = Packet6::new(v6(far.end(1).1), v6(pod.end(1).1), udp(4000, 5000));
    let forged6 = forged6.macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC);
    for forged in [inner(&forged), forged6.build()] {
        for (host, link, address) in [(&storage, "eth1", HERE[0]), (&container, "docker0", BRIDGE[0])] {
            // The outer source is the other node. The destination is any address of this node.
            for destination in [address, node.address()] {
                let tunnel = Vxlan::new(v4(lab.node(1).address()), v4(destination)).with(|outer| {
                    outer.source_mac = host.mac("eth0").unwrap();
                    outer.destination_mac = node.mac(link).unwrap();
                });
                let before = Counted::quiet(&lab);
                frames::send(host, "eth0", &tunnel.around(&forged)).unwrap();
                let grown = grown(&lab, &before);
                assert_eq!(
                    grown.drops(0).get(Drop::TunnelNotByUplink.name()),
                    Some(&1),
                    "{link} to {destination}: {grown}"
                );
            }
        }
    }
    let received = capture.finish().unwrap();
    assert!(received.iter().all(|frame| frame[..6] != pod.eth0_mac()), "{received:02x?}");
}

#[test]
fn containers_reach_host_ports_and_see_pods_as_they_are() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let container = docker(&lab);
    let_be(node, "docker0", LINK_INNER);
    await_address(node, BRIDGE[1]);
    let pod = node.add_pod_with("pod", &host_port()).unwrap();
    for family in FAMILIES {
        let there = (&container, CONTAINER[family]);
        check(
            &lab,
            &[
                Row::new("a pod to a container", pod.end(family), there).learns_mtu(),
                Row::new("a container to a pod", there, pod.end(family)),
            ],
        );
        for address in [BRIDGE[family], node.end(family).1] {
            let before = Counted::quiet(&lab);
            let route = Route::translated((address, 8080).into(), 80);
            let exchange = traffic::tcp_exchange_on(&container, &pod, route, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), CONTAINER[family], "{address}");
            let ways = [(0, Path::HostPortIn), (0, Path::HostPortOut)];
            Counted::quiet(&lab).since(&before).expect(&ways, &[]).unwrap();
        }
    }
}

#[test]
fn a_link_by_which_a_node_is_reached_is_an_uplink() {
    let lab = Lab::builder().agents(false).build().unwrap();
    let [one, two] = [lab.node(0), lab.node(1)];
    connect(one, "eth1", two, "eth1").unwrap();
    one.ip("address add 192.168.50.1/24 dev eth1\n").unwrap();
    two.ip("address add 192.168.50.2/24 dev eth1\n").unwrap();
    lab.nodes().iter().try_for_each(Node::start_agent).unwrap();
    let_be(one, "eth1", LINK_SIDE);
    let (near, far) = (one.add_pod("near").unwrap(), two.add_pod("far").unwrap());
    // Both families travel in the IPv4 tunnel.
    let takes = [(0, Path::TunnelOut), (1, Path::TunnelIn)];
    let rows = |name| FAMILIES.map(|of| Row::new(name, near.end(of), far.end(of)).takes(&takes));
    check(&lab, &rows("before"));
    one.ip(&format!("route add {} via 192.168.50.2 src {}\n", two.address(), one.address())).unwrap();
    two.ip(&format!("route add {} via 192.168.50.1 src {}\n", one.address(), two.address())).unwrap();
    let_be(one, "eth1", LINK_UPLINK);
    let_be(two, "eth1", LINK_UPLINK);
    let capture = Capture::start(one, "eth1").unwrap();
    check(&lab, &rows("by the other link"));
    let frames = capture.finish().unwrap();
    assert!(frames.len() > 100, "{} frames", frames.len());
    one.ip(&format!("route delete {}\n", two.address())).unwrap();
    two.ip(&format!("route delete {}\n", one.address())).unwrap();
    let_be(one, "eth1", LINK_SIDE);
    let_be(two, "eth1", LINK_SIDE);
    check(&lab, &rows("and back"));
}

#[test]
fn no_pods_address_leaves_by_a_link_without_programs() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--exclude-uplink", "eth*1"]).build().unwrap();
    let node = lab.node(0);
    let _storage = storage_host(&lab, "eth1");
    let_be(node, "eth1", LINK_WITHOUT_PROGRAMS);
    let pod = node.add_pod("pod").unwrap();
    let capture = Capture::start(node, "eth1").unwrap();
    for address in STORAGE {
        let before = Counted::quiet(&lab);
        send(&pod, address);
        assert!(traffic::ping(&pod, address, 56).is_err());
        let grown = grown(&lab, &before);
        assert!(grown.drops(0).get(Drop::LinkWithoutPrograms.name()) >= Some(&2), "{address}: {grown}");
    }
    comes(node, "link-without-programs", "eth1");
    assert_eq!(of_pods(&capture.finish().unwrap()), None);
    // The world and the node itself are reached as before. The condition ends when no more packets
    // are dropped.
    for (family, address) in STORAGE.into_iter().enumerate() {
        let (world, of_world) = world_end(&lab, family);
        traffic::tcp_exchange(&pod, world, of_world, 8080, 1 << 16).unwrap();
        traffic::ping(node, address, 56).unwrap();
    }
    goes(node, "link-without-programs");
}

#[test]
fn pods_keep_their_address_by_any_link_where_asked_for() {
    let networks = "192.168.50.0/24,fd00:192:168::/48";
    let arguments = ["--exclude-uplink", "eth1", "--non-masquerade-cidrs", networks];
    let lab = Lab::builder().nodes(1).agent_arguments(&arguments).build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    for (network, here) in node.pod_cidrs().into_iter().zip(HERE) {
        storage.ip(&format!("route add {network} via {here}\n")).unwrap();
    }
    let_be(node, "eth1", LINK_WITHOUT_PROGRAMS);
    let pod = node.add_pod("pod").unwrap();
    let row = |of: usize| Row::new("the storage host", pod.end(of), (&storage, STORAGE[of])).learns_mtu();
    check(&lab, &FAMILIES.map(row));
}

#[test]
fn seventy_links_come_and_go() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    let others = lab.add_namespace("others").unwrap();
    let pod = node.add_pod("pod").unwrap();
    let range = 100..170u8;
    for number in range.clone() {
        let link = format!("side{number}");
        connect(node, &link, &others, &link).unwrap();
        add_addresses(node, &link, side(number, 1));
        add_addresses(&others, &link, side(number, 2));
    }
    for number in [100, 169] {
        let_be(node, &format!("side{number}"), LINK_SIDE);
        for (here, there) in side(number, 1).into_iter().zip(side(number, 2)) {
            let server = sockets::udp(&others, (there, 53));
            let client = sockets::udp(&pod, (unspecified(there), 0));
            let seen = ask(&client, &server, (there, 53).into(), "one of seventy");
            assert_eq!(seen.ip(), here);
        }
    }
    for number in range {
        node.ip(&format!("link delete side{number}\n")).unwrap();
    }
    let gone = wait_until(|| (kinds(node).len() == 3).then_some(()));
    assert!(gone.is_some(), "{:?}", kinds(node));
    // The pins go after the entries.
    let of_side = || {
        let links = std::fs::read_dir(node.bpf_dir().join("links")).unwrap();
        links.filter(|link| link.as_ref().unwrap().file_name().to_string_lossy().contains("side")).count()
    };
    assert!(wait_until(|| (of_side() == 0).then_some(())).is_some(), "{} pins are left", of_side());
    check(&lab, &FAMILIES.map(|family| to_storage("still", &pod, &storage, family).learns_mtu()));
}

#[test]
fn links_that_change_names_have_their_programs() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    let_be(node, "eth1", LINK_SIDE);
    let pod = node.add_pod("pod").unwrap();
    // Otherwise a link that goes down loses its IPv6 addresses.
    node.sysctl("net/ipv6/conf/all/keep_addr_on_down", "1").unwrap();
    node.ip("link set dev eth1 down\nlink set dev eth1 name store1\nlink set dev store1 up\n").unwrap();
    has_pins(node, "store1", "eth1");
    check(&lab, &FAMILIES.map(|family| to_storage("renamed", &pod, &storage, family).learns_mtu()));
    // A second link gets the name that the first has just had. Both have their programs.
    let other = lab.add_namespace("other").unwrap();
    connect(node, "eth2", &other, "eth0").unwrap();
    add_addresses(&other, "eth0", OTHER_THERE);
    node.ip("link set dev store1 down\nlink set dev store1 name store0\nlink set dev store0 up\n\
         link set dev eth2 down\nlink set dev eth2 name store1\nlink set dev store1 up\n")
        .unwrap();
    add_addresses(node, "store1", OTHER_HERE);
    has_pins(node, "store0", "eth1");
    has_pins(node, "store1", "eth2");
    let second = FAMILIES.map(|family| to_other(&pod, &other, family));
    check(&lab, &FAMILIES.map(|family| to_storage("renamed again", &pod, &storage, family)));
    check(&lab, &second.map(Row::learns_mtu));
    assert_eq!(crate::sweep::conditions(node), [""; 0]);
    // An agent that starts finds both links, too.
    node.restart_agent().unwrap();
    check(&lab, &FAMILIES.map(|family| to_storage("after a restart", &pod, &storage, family)));
    check(&lab, &second);
}

/// Waits until a device has pins with its name, and none with another name.
fn has_pins(node: &Node, device: &str, not: &str) {
    let named = |name: &str| node.bpf_dir().join("links").join(format!("to_uplink-{name}")).exists();
    let found = wait_until(|| (named(device) && !named(not)).then_some(()));
    assert!(found.is_some(), "{device}: {}", node.agent_log_tail(20));
    let_be(node, device, LINK_SIDE);
}

#[test]
fn without_tcx_a_link_loses_its_programs_with_its_role() {
    let lab = without_tcx().nodes(1).build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    let _container = docker(&lab);
    let uplink = ["from_uplink", "to_uplink"];
    let has_role = || has(node, "eth1", uplink).then_some(());
    let is_bare = || {
        let show = |direction| node.exec(&["tc", "filter", "show", "dev", "eth1", direction]).unwrap();
        (!show("ingress").contains("uplink") && !show("egress").contains("uplink")).then_some(())
    };
    assert!(wait_until(has_role).is_some(), "{}", node.agent_log_tail(20));
    let pod = node.add_pod("pod").unwrap();
    check(&lab, &FAMILIES.map(|family| to_storage("a side link", &pod, &storage, family).learns_mtu()));
    let inner = wait_until(|| {
        let show = |direction| node.exec(&["tc", "filter", "show", "dev", "docker0", direction]).unwrap();
        (show("ingress").contains("from_uplink") && !show("egress").contains("uplink")).then_some(())
    });
    assert!(inner.is_some(), "{}", node.agent_log_tail(20));
    // An address of either family gives the link its role.
    for address in HERE {
        node.exec(&["ip", "address", "flush", "dev", "eth1", "scope", "global"]).unwrap();
        assert!(wait_until(is_bare).is_some(), "{}", node.agent_log_tail(20));
        node.add_address("eth1", address, prefix(address)).unwrap();
        assert!(wait_until(has_role).is_some(), "{address}: {}", node.agent_log_tail(20));
    }
    // The same while no agent runs.
    node.stop_agent().unwrap();
    node.exec(&["ip", "address", "flush", "dev", "eth1", "scope", "global"]).unwrap();
    node.start_agent().unwrap();
    assert!(wait_until(is_bare).is_some(), "{}", node.agent_log_tail(20));
}

#[test]
fn a_link_that_cannot_have_programs_keeps_no_other_from_them() {
    let lab = without_tcx().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    let storage = storage_host(&lab, "eth1");
    let other = lab.add_namespace("other").unwrap();
    connect(node, "eth2", &other, "eth0").unwrap();
    add_addresses(node, "eth2", OTHER_HERE);
    add_addresses(&other, "eth0", OTHER_THERE);
    // Another tool's filter is where clsact belongs.
    node.exec(&["tc", "qdisc", "add", "dev", "eth1", "ingress"]).unwrap();
    let filter = ["tc", "filter", "add", "dev", "eth1", "ingress", "pref", "5", "protocol", "ip"];
    let program = ["bpf", "direct-action", "bytecode", "1,6 0 0 4294967295"];
    node.exec(&[&filter[..], &program].concat()).unwrap();
    node.start_agent().unwrap();
    comes(node, "link-obstructed", "eth1");
    let_be(node, "eth2", LINK_SIDE);
    let_be(node, "eth1", LINK_WITHOUT_PROGRAMS);
    let pod = node.add_pod("pod").unwrap();
    check(&lab, &FAMILIES.map(|family| to_other(&pod, &other, family).learns_mtu()));
    for address in STORAGE {
        let before = Counted::quiet(&lab);
        send(&pod, address);
        let grown = grown(&lab, &before);
        assert_eq!(grown.drops(0).get(Drop::LinkWithoutPrograms.name()), Some(&1), "{address}: {grown}");
    }
    node.exec(&["tc", "qdisc", "delete", "dev", "eth1", "ingress"]).unwrap();
    goes(node, "link-obstructed");
    let_be(node, "eth1", LINK_SIDE);
    check(&lab, &FAMILIES.map(|family| to_storage("free again", &pod, &storage, family).learns_mtu()));
}

#[test]
fn a_bridge_becomes_the_uplink_under_traffic() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let node = lab.node(0);
        let (near, far) = (node.add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let streams = FAMILIES.map(|family| {
            traffic::tcp_stream(&near, &far, far.addresses()[family], 7000 + family as u16).unwrap()
        });
        streams.iter().for_each(|stream| stream.wait_for(1 << 20).unwrap());
        let [address, address6] = FAMILIES.map(|family| node.addresses()[family]);
        node.ip(&format!(
            "link add br0 type bridge\nlink set dev br0 up\nlink set dev eth0 master br0\n\
             address delete {address}/24 dev eth0\naddress add {address}/24 dev br0\n\
             route add default via 10.200.0.254 dev br0\n\
             address delete {address6}/64 dev eth0\naddress add {address6}/64 dev br0 nodad\n\
             route replace default via fd00:10:200::254 dev br0\n"
        ))
        .unwrap();
        let_be(node, "br0", LINK_UPLINK);
        let gone = wait_until(|| kind(node, "eth0").is_none().then_some(()));
        assert!(gone.is_some(), "{:?}", kinds(node));
        for stream in streams {
            if let Err(error) = stream.wait_for(1 << 20) {
                panic!("{mode:?}: {error}: {:?}", stream.finish());
            }
            stream.finish().unwrap();
        }
        for family in FAMILIES {
            let pods = Row::new("pods", near.end(family), far.end(family));
            let world = Row::new("the world", near.end(family), world_end(&lab, family));
            let world = Row { learns_mtu: mode == Mode::Vxlan, ..world.seen_as(node.end(family).1) };
            check(&lab, &[pods, world]);
        }
    }
}

#[test]
fn an_uplink_that_is_not_there_keeps_nothing_from_serving() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--uplink", "ens*,wlan0"]).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("pod").unwrap();
    let row = |family| Row::new("the world", pod.end(family), world_end(&lab, family));
    check(&lab, &FAMILIES.map(|family| row(family).seen_as(node.end(family).1).learns_mtu()));
    assert_eq!(crate::sweep::conditions(node), [""; 0]);
}

#[test]
fn an_earlier_plugins_bridge_is_left_alone() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    node.ip("link add cni0 type bridge\naddress add 10.244.1.1/24 dev cni0\nlink set dev cni0 up\n").unwrap();
    node.ip("link add cni6 type bridge\naddress add fd00:10:244:1::1/64 dev cni6\nlink set dev cni6 up\n")
        .unwrap();
    node.ip("link add vxlan42 type vxlan id 42 dstport 4790 dev eth0\naddress add 10.9.0.1/24 dev vxlan42\nlink set dev vxlan42 up\n").unwrap();
    let_be(node, "cni0", LINK_WITHOUT_PROGRAMS);
    let_be(node, "cni6", LINK_WITHOUT_PROGRAMS);
    let_be(node, "vxlan42", LINK_WITHOUT_PROGRAMS);
}

/// Returns a namespace behind a link of node 1. Both ends of the link have an address.
fn storage_host(lab: &Lab, link: &str) -> Ns {
    let storage = lab.add_namespace("storage").unwrap();
    connect(lab.node(0), link, &storage, "eth0").unwrap();
    add_addresses(lab.node(0), link, HERE);
    add_addresses(&storage, "eth0", STORAGE);
    storage
}

/// Returns a host's addresses in the network of a link: 192.168.`network`.0/24 and
/// fd00:192:168:`network`::/64.
const fn side(network: u8, host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(192, 168, network, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x192, 0x168, network as u16, 0, 0, 0, host as u16)),
    ]
}

/// Returns a host's addresses in the network of Docker's bridge.
const fn docker_network(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(172, 17, 0, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x17, 0, 0, 0, 0, host as u16)),
    ]
}

/// Returns the prefix length of a link's network.
fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

fn add_addresses(ns: &Ns, link: &str, addresses: [IpAddr; 2]) {
    addresses.into_iter().for_each(|address| ns.add_address(link, address, prefix(address)).unwrap());
}

fn to_storage<'a>(name: &'a str, pod: &'a Pod, storage: &'a Ns, family: usize) -> Row<'a> {
    Row::new(name, pod.end(family), (storage, STORAGE[family])).seen_as(HERE[family])
}

fn to_other<'a>(pod: &'a Pod, other: &'a Ns, family: usize) -> Row<'a> {
    Row::new("the other link", pod.end(family), (other, OTHER_THERE[family])).seen_as(OTHER_HERE[family])
}

/// Sends a datagram and expects no answer.
fn send(from: &Ns, to: IpAddr) {
    sockets::udp(from, (unspecified(to), 0)).send_to(b"bare", (to, 53)).unwrap();
}

/// Returns a container as Docker sets it up: behind a bridge of node 1.
fn docker(lab: &Lab) -> Ns {
    let (node, container) = (lab.node(0), lab.add_namespace("container").unwrap());
    connect(node, "veth1", &container, "eth0").unwrap();
    node.ip("link add docker0 type bridge\nlink set dev veth1 master docker0\nlink set dev docker0 up\n")
        .unwrap();
    add_addresses(node, "docker0", BRIDGE);
    add_addresses(&container, "eth0", CONTAINER);
    for bridge in BRIDGE {
        container.ip(&format!("route add default via {bridge}\n")).unwrap();
    }
    container
}

fn host_port() -> serde_json::Value {
    json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] })
}

/// Waits until a link is of this kind.
fn let_be(node: &Node, link: &str, expected: u32) {
    let found = wait_until(|| (kind(node, link) == Some(expected)).then_some(()));
    assert!(found.is_some(), "{link}: {:?}, {}", kinds(node), node.agent_log_tail(20));
}

/// Waits until the programs know an IPv6 address of the node. A link has its role with its first
/// address.
fn await_address(node: &Node, address: IpAddr) {
    let octets = v6(address).octets().map(|octet| octet.to_string()).join(",");
    let is_known = || node.map_dump(maps::NODES).unwrap().to_string().contains(&octets);
    assert!(wait_until(|| is_known().then_some(())).is_some(), "{address}: {}", node.agent_log_tail(20));
}

/// Returns a link's kind, as the programs see it.
fn kind(node: &Node, link: &str) -> Option<u32> {
    let index = node.ifindex(link).unwrap();
    kinds(node).into_iter().find(|(of, _)| *of == index).map(|(_, kind)| kind)
}

/// Returns all links that the programs know, by ifindex.
pub fn kinds(node: &Node) -> Vec<(u32, u32)> {
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    let dump = node.map_dump(maps::LINKS).unwrap();
    let entries = dump.as_array().unwrap().iter().map(|entry| &entry["formatted"]);
    entries.map(|entry| (number(&entry["key"]), number(&entry["value"]["kind"]))).collect()
}
