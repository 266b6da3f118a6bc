//! IPv6 routers: IPv4 routes that lead by them, on every path past the host stack, and default
//! routes that nodes learn from their advertisements.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddrV6};

use podwire_common::abi::{FAMILY_IPV6, LEAVES_INTO_POD};
use podwire_common::addr::Addr;
use podwire_common::names::maps;
use podwire_common::reason::Path::{
    DirectIn, DirectOut, HostPortIn, HostPortOut, SnatIn, SnatOut, TunnelIn, TunnelOut,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket, sockopt};
use serde_json::json;
use xtask::lab::{Lab, Mode, Node, Ns, connect, traffic};

use crate::check::{Counted, Counter, Row, check};
use crate::reach;
use crate::sockets::wait_until;

/// The underlay's address on each of its links.
const ROUTER: &str = "fe80::1";
const HOST_PORT: u16 = 8080;

#[test]
fn an_ipv4_route_leads_by_an_ipv6_router() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).router(true).build().unwrap();
        for node in lab.nodes() {
            let (name, link) = (node.name(), node.uplink());
            lab.underlay().ip(&format!("address add {ROUTER}/64 dev {name} nodad\n")).unwrap();
            node.ip(&format!("route replace 0.0.0.0/0 via inet6 {ROUTER} dev {link}\n")).unwrap();
        }
        let mapping = json!({"portMappings": [
            {"hostPort": HOST_PORT, "containerPort": HOST_PORT, "protocol": "tcp"},
            {"hostPort": HOST_PORT, "containerPort": HOST_PORT, "protocol": "udp"},
        ]});
        let pod = lab.node(0).add_pod("pod").unwrap();
        let server = lab.node(0).add_pod_with("server", &mapping).unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let (out, into) = match mode {
            Mode::Vxlan => (TunnelOut, TunnelIn),
            Mode::Direct => (DirectOut, DirectIn),
        };
        let both_ways: [Counter; 4] = [(0, out), (1, into), (1, out), (0, into)];
        let to_world = [(0, SnatOut), (0, SnatIn)];
        check(
            &lab,
            &[
                Row::new("pods", (&pod, pod.address()), (&far, far.address())).takes(&both_ways),
                Row::new("a pod to the world", (&pod, pod.address()), (lab.world(), lab.world_address()))
                    .seen_as(lab.node(0).address())
                    .takes(&to_world),
            ],
        );
        let host_port = traffic::Route::to(lab.node(0).address(), HOST_PORT);
        for (what, client, seen) in
            [("the world", lab.world(), lab.world_address()), ("a pod of another node", &*far, far.address())]
        {
            let before = Counted::quiet(&lab);
            let streamed = traffic::tcp_exchange_on(client, &server, host_port, 4 << 20);
            let grown = Counted::quiet(&lab).since(&before);
            let streamed = streamed.unwrap_or_else(|error| panic!("{mode:?}, {what}: {error:#}; {grown}"));
            assert_eq!(streamed.peer_seen_by_server.ip(), seen, "{mode:?}, {what}");
            grown.expect(&[(0, HostPortIn), (0, HostPortOut)], &[]).unwrap();
        }
        // Later connections to the same destination: they go past the host's rules from the first
        // packet on.
        for _ in 0..4 {
            traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8443, 1 << 20).unwrap();
        }
        for node in lab.nodes() {
            let known = node.map_dump(maps::FLOWS).unwrap();
            let known = known.as_array().unwrap().iter().map(|entry| &entry["formatted"]["value"]);
            let leaving = known.filter(|known| known["leaves"] != u64::from(LEAVES_INTO_POD));
            let routers: BTreeSet<_> = leaving.map(|known| known["next_hop"]["family"].as_u64()).collect();
            assert_eq!(routers, [Some(FAMILY_IPV6.into())].into(), "{mode:?}: routers that are known");
            let neighbours = node.exec(&["ip", "neigh", "show"]).unwrap();
            assert!(!neighbours.contains("254.128.0.0"), "{mode:?}: {neighbours}");
            assert!(neighbours.contains(ROUTER), "{mode:?}: the IPv6 router was asked for: {neighbours}");
        }
    }
}

/// A node that forwards accepts no advertisements, and the kernel takes from it what it has learned,
/// unless `accept_ra` is 2.
#[test]
fn a_default_route_learned_by_advertisements_stays() {
    // A tunnel of IPv6 takes the learned route as well.
    for (mode, arguments) in [(Mode::Vxlan, &["--tunnel-family", "ipv6"][..]), (Mode::Direct, &[])] {
        let lab = Lab::builder().mode(mode).router(true).agents(false).agent_arguments(arguments);
        let lab = lab.build().unwrap();
        let (node, other) = (lab.node(0), lab.node(1));
        lab.underlay().ip(&format!("address add {ROUTER}/64 dev node1 nodad\n")).unwrap();
        node.exec(&["ip", "-6", "route", "delete", "default"]).unwrap();
        assert_eq!((accept_ra(node, "eth0").as_str(), forwarding(node).as_str()), ("1", "0"));
        let is_learned = || {
            let shown = node.exec(&["ip", "-6", "route", "show", "default", "proto", "ra"]).unwrap();
            shown.contains(&format!("via {ROUTER}"))
        };
        let becomes = |learned: bool| {
            let is_so = || (is_learned() == learned).then_some(());
            assert!(wait_until(is_so).is_some(), "{mode:?}: {learned}, {}", node.agent_log_tail(20));
        };
        advertise(lab.underlay(), "node1", 600);
        becomes(true);
        lab.nodes().iter().for_each(|node| node.start_agent().unwrap());
        assert!(is_learned(), "{mode:?}: {}", node.agent_log());
        assert_eq!((accept_ra(node, "eth0").as_str(), forwarding(node).as_str()), ("2", "1"));
        let (pod, far) = (node.add_pod("pod").unwrap(), other.add_pod("far").unwrap());
        reach(&pod, &far);
        reach(&far, &pod);
        reach(node, &far);
        let world = lab.world_addresses()[1];
        traffic::tcp_exchange(node, lab.world(), world, 8080, 1000).unwrap();
        let to_world = Row::new("pod to the world", (&pod, pod.addresses()[1]), (lab.world(), world))
            .seen_as(node.addresses()[1])
            .takes(&[(0, SnatOut), (0, SnatIn)]);
        check(&lab, &[Row { learns_mtu: mode == Mode::Vxlan, ..to_world }]);
        // Connections past the host's rules, and the tunnel of IPv6.
        for _ in 0..4 {
            traffic::tcp_exchange(&pod, lab.world(), world, 8443, 1 << 20).unwrap();
        }
        let known = node.map_dump(maps::FLOWS6).unwrap();
        let known = known.as_array().unwrap().iter().map(|entry| &entry["formatted"]["value"]);
        let leaving = known.filter(|known| known["leaves"] != u64::from(LEAVES_INTO_POD));
        let routers: BTreeSet<_> = leaving.map(|known| known["next_hop"]["address"].to_string()).collect();
        let router = Addr::from(ROUTER.parse::<IpAddr>().unwrap()).words();
        assert_eq!(routers, [json!(router).to_string()].into(), "{mode:?}: routers that are known");
        // The node goes on to listen.
        advertise(lab.underlay(), "node1", 0);
        becomes(false);
        advertise(lab.underlay(), "node1", 600);
        becomes(true);
        traffic::tcp_exchange(node, lab.world(), world, 8080, 1000).unwrap();
        // Another tool changes the switch, and a link comes later.
        node.sysctl("net/ipv6/conf/eth0/accept_ra", "1").unwrap();
        let behind = lab.add_namespace("behind").unwrap();
        connect(node, "eth1", &behind, "eth0").unwrap();
        node.ip("address add fd00:99::1/64 dev eth1 nodad\n").unwrap();
        for link in ["eth0", "eth1"] {
            let is_set = || (accept_ra(node, link) == "2").then_some(());
            assert!(wait_until(is_set).is_some(), "{mode:?}: {link}: {}", node.agent_log_tail(20));
        }
        reach(&pod, &far);

        // A node with such a link would go on to forward.
        node.ip("link delete eth1\n").unwrap();
        node.stop_agent().unwrap();
        let done = node.uninstall().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert!(is_learned());
        assert_eq!(forwarding(node), "0");
        assert_eq!(accept_ra(node, "eth0"), "1");
    }
}

/// If the node forwarded before the agent, its operator has decided about `accept_ra`.
#[test]
fn accept_ra_of_a_node_that_forwarded_before_stays() {
    let lab = Lab::builder().nodes(1).agents(false).build().unwrap();
    let node = lab.node(0);
    node.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
    node.start_agent().unwrap();
    reach(node, &node.add_pod("pod").unwrap());
    assert_eq!(accept_ra(node, "eth0"), "1");
    node.stop_agent().unwrap();
    assert!(node.uninstall().unwrap().status.success());
    assert_eq!((accept_ra(node, "eth0").as_str(), forwarding(node).as_str()), ("1", "1"));
}

/// Sends a router advertisement (RFC 4861 section 4.2) on a link. `lifetime`: seconds for which the
/// sender is a default router; 0 takes an earlier one back.
fn advertise(router: &Ns, link: &str, lifetime: u16) {
    let mut message = [0; 16];
    message[0] = 134;
    message[4] = 64;
    message[6..8].copy_from_slice(&lifetime.to_be_bytes());
    let scope = router.ifindex(link).unwrap();
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, scope);
    let send = || -> io::Result<usize> {
        let socket = socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        // Receivers drop what a router has forwarded.
        sockopt::set_ipv6_multicast_hops(&socket, 255)?;
        Ok(sendto(&socket, &message, SendFlags::empty(), &all_nodes)?)
    };
    assert_eq!(router.enter(send).unwrap().unwrap(), message.len());
}

fn accept_ra(node: &Node, link: &str) -> String {
    node.exec(&["cat", &format!("/proc/sys/net/ipv6/conf/{link}/accept_ra")]).unwrap().trim().to_owned()
}

fn forwarding(node: &Node) -> String {
    node.exec(&["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).unwrap().trim().to_owned()
}
