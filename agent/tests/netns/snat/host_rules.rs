//! Flows to the world that the host's rules change: they stay with the rules for their whole life.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use xtask::lab::{Mode, traffic};

use super::past_stack::{Connection, Scene};
use super::uplinks::two_uplinks;
use super::{ask, assert_alive};
use crate::service::{drop_invalid, iptables};
use crate::sockets::{UdpSocket, connect_from, listen, udp};

/// A service's address. No host has it: a rule translates it.
const SERVICE: &str = "10.96.0.9";
/// Longer than an entry of `FLOWS` is valid (256 jiffies), on kernels with at least 250 jiffies a
/// second.
const A_WHILE: Duration = Duration::from_millis(1200);

#[test]
fn a_service_outside_answers_under_its_own_address() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        serve_outside(&scene);
        let service: IpAddr = SERVICE.parse().unwrap();
        let Connection { client, server } = scene.connect_to(service);
        let datagrams = udp(scene.lab.world(), "0.0.0.0:53");
        let asking = udp(&scene.pod, "0.0.0.0:0");
        for round in 0..2 {
            assert_alive(&client, &server, &format!("{mode:?}, round {round}"));
            ask(&asking, &datagrams, SocketAddr::new(service, 53), &format!("{mode:?}, round {round}"));
            std::thread::sleep(A_WHILE);
        }
        let tracked = scene.node().exec(&["conntrack", "-L", "--orig-dst", SERVICE]).unwrap();
        assert!(tracked.contains("ESTABLISHED"), "connection tracking sees both directions: {tracked}");
        assert!(!tracked.contains("UNREPLIED"), "{tracked}");
    }
}

#[test]
fn one_socket_reaches_an_outer_server_directly_and_by_service() {
    #[derive(Clone, Copy, Debug)]
    enum By {
        Service,
        Itself,
    }
    use By::{Itself, Service};
    for first in [Itself, Service] {
        for forgotten in [false, true] {
            let scene = Scene::new(Mode::Vxlan);
            drop_invalid(&scene.lab);
            serve_outside(&scene);
            let server = udp(scene.lab.world(), "0.0.0.0:53");
            let client = udp(&scene.pod, "0.0.0.0:40000");
            let second = if matches!(first, Itself) { Service } else { Itself };
            for (number, by) in [first, first, second, first, second, second, first].into_iter().enumerate() {
                let to = match by {
                    Service => SocketAddr::new(SERVICE.parse().unwrap(), 53),
                    Itself => scene.to(53),
                };
                ask(
                    &client,
                    &server,
                    to,
                    &format!("{first:?} first, forgotten: {forgotten}, {number}: {by:?}"),
                );
                // Connection tracking does not see packets that go past it, and forgets the flow
                // after half a minute.
                if forgotten && number == 1 {
                    scene.node().exec(&["conntrack", "-F"]).unwrap();
                }
            }
        }
    }
}

#[test]
fn unanswered_flow_begun_before_its_rule_is_seen_by_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let server = udp(scene.lab.world(), "0.0.0.0:53");
        let client = udp(&scene.pod, "0.0.0.0:40000");
        let to = SocketAddr::new(SERVICE.parse().unwrap(), 53);
        // The node's rules are not there yet: the service's address goes out into the world, where
        // no host has it.
        for _ in 0..3 {
            client.send_to(b"too early", to).unwrap();
        }
        serve_outside(&scene);
        // kube-proxy does this after it has written a service's rules (stale entries of UDP).
        scene.node().exec(&["conntrack", "-D", "-p", "udp", "--orig-dst", SERVICE]).unwrap();
        ask(&client, &server, to, &format!("{mode:?}"));
    }
}

#[test]
fn a_flow_follows_the_hosts_routing_policy_for_its_whole_life() {
    /// Ways to give a flow a routing table of its own: rules of iptables, and a routing rule.
    const POLICIES: [(&str, &[&str], &str); 3] = [
        ("a mark", &["-t mangle -A PREROUTING -i pw+ -d 203.0.113.9 -j MARK --set-mark 7"], "fwmark 7"),
        (
            "a mark that is taken off again",
            &[
                "-t mangle -A PREROUTING -i pw+ -d 203.0.113.9 -j MARK --set-mark 7",
                "-t mangle -A POSTROUTING -d 203.0.113.9 -j MARK --set-mark 0",
            ],
            "fwmark 7",
        ),
        ("its port", &[], "dport 5000-6000"),
    ];
    for (policy, rules, routing) in POLICIES {
        let scene = Scene::new(Mode::Vxlan);
        let node = scene.node();
        // The gateway itself has 203.0.113.9, so only the route by the gateway leads there.
        let gateway = scene.lab.add_host("gateway", "10.200.0.253".parse().unwrap()).unwrap();
        gateway.ip("address add 203.0.113.9/32 dev eth0\n").unwrap();
        traffic::ping(node, "10.200.0.253".parse().unwrap(), 56).unwrap();
        rules.iter().for_each(|rule| iptables(node, rule));
        node.ip(&format!("route add default via 10.200.0.253 table 100\nrule add {routing} lookup 100\n"))
            .unwrap();

        let to = "203.0.113.9:5353".parse().unwrap();
        let (server, listener) = (udp(&gateway, to), listen(&gateway, "203.0.113.9:5443"));
        let client = udp(&scene.pod, "0.0.0.0:40000");
        // The connection begins while the flow of datagrams is known.
        let first = ask(&client, &server, to, policy);
        let connection = connect_from(&scene.pod, "0.0.0.0:0", "203.0.113.9:5443").unwrap();
        let (accepted, _) = listener.accept().unwrap();
        for round in 0..4 {
            assert_eq!(ask(&client, &server, to, &format!("{policy}, round {round}")), first);
            assert_alive(&connection, &accepted, &format!("{policy}, round {round}"));
            let another = connect_from(&scene.pod, "0.0.0.0:0", "203.0.113.9:5443").unwrap();
            assert_alive(
                &another,
                &listener.accept().unwrap().0,
                &format!("{policy}, round {round}, another"),
            );
            std::thread::sleep(A_WHILE / 3);
        }
    }
}

#[test]
fn a_marked_flow_leaves_by_its_own_uplink_for_its_whole_life() {
    let lab = two_uplinks();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    traffic::ping(node, lab.world_address(), 56).unwrap();
    traffic::ping(node, "192.168.7.2".parse().unwrap(), 56).unwrap();
    iptables(node, "-t mangle -A PREROUTING -i pw+ -j MARK --set-mark 7");
    node.ip("route add default via 192.168.7.2 table 100\nrule add fwmark 7 lookup 100\n").unwrap();
    let server = udp(lab.world(), "198.51.100.10:53");
    let client = udp(&pod, "0.0.0.0:40000");
    let to = SocketAddr::new(lab.world_address(), 53);
    for round in 0..4 {
        let seen = ask(&client, &server, to, &format!("round {round}"));
        assert_eq!(seen.ip(), IpAddr::from([192, 168, 7, 1]), "round {round}");
        std::thread::sleep(A_WHILE / 3);
    }
}

#[test]
fn rules_that_change_a_first_packet_in_any_way_see_all() {
    const CONNECTIONS: usize = 10;
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let node = scene.node();
        iptables(
            node,
            "-t mangle -A FORWARD -p tcp --dport 443 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",
        );
        for (port, change) in [(53, "-j DSCP --set-dscp 10"), (54, "-j TTL --ttl-set 17")] {
            iptables(node, &format!("-t mangle -A POSTROUTING -p udp --dport {port} {change}"));
        }
        for number in 0..CONNECTIONS {
            let Connection { client, server } = scene.connect_to(scene.lab.world_address());
            assert_alive(&client, &server, &format!("{mode:?}, {number}"));
            let port = server.peer_addr().unwrap().port();
            let filter = format!("( dport = :{port} )");
            let shown = scene.lab.world().exec(&["ss", "-Htin", &filter]).unwrap();
            let mss =
                shown.split_whitespace().find_map(|word| word.strip_prefix("mss:")?.parse::<u32>().ok());
            assert!(mss.is_some_and(|mss| mss <= 1000), "{mode:?}, {number}: {shown}");
        }
        for port in [53, 54] {
            let server = udp(scene.lab.world(), ("0.0.0.0", port));
            let client = udp(&scene.pod, "0.0.0.0:40000");
            for number in 0..CONNECTIONS {
                ask(&client, &server, scene.to(port), &format!("{mode:?}, {number}"));
            }
            let counted = node.exec(&["iptables", "-t", "mangle", "-nvxL", "POSTROUTING"]).unwrap();
            let rule = counted.lines().find(|line| line.contains(&format!("dpt:{port}"))).unwrap();
            let packets = rule.split_whitespace().next().unwrap();
            assert_eq!(packets, CONNECTIONS.to_string(), "{mode:?}, to {port}: {counted}");
        }
    }
}

#[test]
fn what_the_host_keeps_or_refuses_is_kept_and_refused() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let node = scene.node();
        for protocol in ["tcp", "udp"] {
            let here = format!("{}:8081", node.address());
            iptables(
                node,
                &format!(
                    "-t nat -A PREROUTING -i pw+ -p {protocol} --dport 80 -j DNAT --to-destination {here}"
                ),
            );
            iptables(node, &format!("-A FORWARD -p {protocol} --dport 81 -j REJECT"));
        }
        let (listener, server) = (listen(node, "0.0.0.0:8081"), udp(node, "0.0.0.0:8081"));
        let client = udp(&scene.pod, "0.0.0.0:40000");
        let connection = connect_from(&scene.pod, "0.0.0.0:0", scene.to(80)).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), scene.pod.address(), "{mode:?}");
        for round in 0..3 {
            assert_alive(&connection, &accepted, &format!("{mode:?}, round {round}"));
            ask(&client, &server, scene.to(80), &format!("{mode:?}, round {round}"));
        }
        let refused = udp(&scene.pod, "0.0.0.0:40001");
        refused.connect(scene.to(81)).unwrap();
        for round in 0..3 {
            let error = connect_from(&scene.pod, "0.0.0.0:0", scene.to(81)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{mode:?}, round {round}");
            assert_eq!(refusal(&refused), ErrorKind::ConnectionRefused, "{mode:?}, round {round}");
        }
    }
}

/// Returns the error that a connected socket gets when it sends.
fn refusal(socket: &UdpSocket) -> ErrorKind {
    socket.send(b"?").and_then(|_| socket.recv(&mut [0; 10])).unwrap_err().kind()
}

/// Adds the service's rules: for both protocols, to the world's server.
fn serve_outside(scene: &Scene) {
    let world = scene.lab.world_address();
    for protocol in ["tcp", "udp"] {
        iptables(
            scene.node(),
            &format!("-t nat -A PREROUTING -d {SERVICE} -p {protocol} -j DNAT --to-destination {world}"),
        );
    }
}
