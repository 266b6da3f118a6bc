//! Flows to the world that the host's rules change: they stay with the rules for their whole life.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podwire_common::names::maps;
use xtask::lab::{Mode, Node, traffic};

use super::past_stack::{Connection, Scene};
use super::uplinks::two_uplinks;
use super::{ask, assert_alive, tracked};
use crate::service::{drop_invalid, service};
use crate::sockets::{UdpSocket, connect_from, listen, udp, wait_until};
use crate::{ANY, FAMILIES, dumped, ip_tables, keep_families_apart, world_end};

/// A service's address of each family. No host has it: a rule translates it.
const SERVICE: [IpAddr; 2] = service(9);
/// Longer than an entry of `FLOWS` or `FLOWS6` is valid (256 jiffies), on kernels with at least 250
/// jiffies a second.
const A_WHILE: Duration = Duration::from_millis(1200);

#[test]
fn a_service_outside_answers_under_its_own_address() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        serve_outside(&scene);
        let flows = FAMILIES.map(|family| (scene.connect_to(SERVICE[family]), scene.datagrams(family)));
        for round in 0..2 {
            for (service, (Connection { client, server }, (datagrams, asking))) in SERVICE.iter().zip(&flows)
            {
                let what = format!("{mode:?}, {service}, round {round}");
                assert_alive(client, server, &what);
                ask(asking, datagrams, SocketAddr::new(*service, 53), &what);
            }
            std::thread::sleep(A_WHILE);
        }
        for family in FAMILIES {
            let tracked = tracked(scene.node(), family, &["--orig-dst", &SERVICE[family].to_string()]);
            assert!(tracked.contains("ESTABLISHED"), "connection tracking sees both directions: {tracked}");
            assert!(!tracked.contains("UNREPLIED"), "{tracked}");
        }
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
            let second = if matches!(first, Itself) { Service } else { Itself };
            for family in FAMILIES {
                let (server, client) = scene.datagrams(family);
                let order = [first, first, second, first, second, second, first];
                for (number, by) in order.into_iter().enumerate() {
                    let to = match by {
                        Service => SocketAddr::new(SERVICE[family], 53),
                        Itself => scene.to(family, 53),
                    };
                    ask(
                        &client,
                        &server,
                        to,
                        &format!("{first:?} first, forgotten: {forgotten}, {number}: {by:?}, {to}"),
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
}

#[test]
fn unanswered_flow_begun_before_its_rule_is_seen_by_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let flows = FAMILIES.map(|family| scene.datagrams(family));
        let to = SERVICE.map(|service| SocketAddr::new(service, 53));
        // The node's rules are not there yet: the service's address goes out into the world, where
        // no host has it.
        for ((_, client), to) in flows.iter().zip(to) {
            for _ in 0..3 {
                client.send_to(b"too early", to).unwrap();
            }
        }
        serve_outside(&scene);
        for (family, (server, client)) in flows.iter().enumerate() {
            // kube-proxy does this after it has written a service's rules (stale entries of UDP).
            let (name, service) = (["ipv4", "ipv6"][family], SERVICE[family].to_string());
            let delete = ["conntrack", "-D", "-f", name, "-p", "udp", "--orig-dst", &service];
            scene.node().exec(&delete).unwrap();
            ask(client, server, to[family], &format!("{mode:?}, {service}"));
        }
    }
}

#[test]
fn a_flow_follows_the_hosts_routing_policy_for_its_whole_life() {
    const GATEWAY: [&str; 2] = ["10.200.0.253", "fd00:10:200::253"];
    const SERVER: [&str; 2] = ["203.0.113.9", "2001:db8:9::9"];
    /// Ways to give a flow to the server a routing table of its own: rules of iptables, and a
    /// routing rule.
    const POLICIES: [(&str, &[&str], [&str; 2]); 3] = [
        ("a mark", &["-t mangle -A PREROUTING -i pw+ -d SERVER -j MARK --set-mark 7"], ["fwmark", "7"]),
        (
            "a mark that is taken off again",
            &[
                "-t mangle -A PREROUTING -i pw+ -d SERVER -j MARK --set-mark 7",
                "-t mangle -A POSTROUTING -d SERVER -j MARK --set-mark 0",
            ],
            ["fwmark", "7"],
        ),
        ("its port", &[], ["dport", "5000-6000"]),
    ];
    for (policy, rules, routing) in POLICIES {
        let scene = Scene::new(Mode::Vxlan);
        let (node, pod) = (scene.node(), &scene.pod);
        // The gateway itself has the server's addresses, so only the route by the gateway leads
        // there.
        let gateway = scene.lab.add_host("gateway", GATEWAY[0].parse().unwrap()).unwrap();
        gateway.sysctl("net/ipv6/conf/all/disable_ipv6", "0").unwrap();
        gateway.add_address("eth0", GATEWAY[1].parse().unwrap(), 64).unwrap();
        keep_families_apart(&[&gateway]);
        let flows = FAMILIES.map(|family| {
            let (server, by) = (SERVER[family].parse::<IpAddr>().unwrap(), GATEWAY[family]);
            gateway.add_address("eth0", server, [32, 128][family]).unwrap();
            traffic::ping(node, by.parse().unwrap(), 56).unwrap();
            for rule in rules {
                ip_tables(node, family, &rule.replace("SERVER", SERVER[family]));
            }
            follow(node, family, by, &routing);

            let to = SocketAddr::new(server, 5353);
            let server = udp(&gateway, to);
            let client = udp(pod, (ANY[family], 40000));
            let by_stream = SocketAddr::new(to.ip(), 5443);
            let listener = listen(&gateway, by_stream);
            let connect = move || {
                let connection = connect_from(pod, (ANY[family], 0), by_stream).unwrap();
                (connection, listener.accept().unwrap().0)
            };
            // The connection begins while the flow of datagrams is known.
            let first = ask(&client, &server, to, policy);
            (to, client, server, first, connect(), connect)
        });
        for round in 0..4 {
            for (to, client, server, first, connection, connect) in &flows {
                let what = format!("{policy}, {to}, round {round}");
                assert_eq!(ask(client, server, *to, &what), *first);
                assert_alive(&connection.0, &connection.1, &what);
                let another = connect();
                assert_alive(&another.0, &another.1, &format!("{what}, another"));
            }
            std::thread::sleep(A_WHILE / 3);
        }
    }
}

#[test]
fn a_marked_flow_leaves_by_its_own_uplink_for_its_whole_life() {
    let lab = two_uplinks();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let own: [IpAddr; 2] = ["192.168.7.1", "fd00:7::1"].map(|own| own.parse().unwrap());
    node.add_address("eth1", own[1], 64).unwrap();
    lab.world().add_address("eth1", "fd00:7::2".parse().unwrap(), 64).unwrap();
    let is_known = || node.map_dump(maps::NODES).unwrap().to_string().contains(&dumped(own[1]));
    assert!(wait_until(|| is_known().then_some(())).is_some(), "{}", node.agent_log_tail(20));
    keep_families_apart(&[lab.world(), &pod]);
    let flows = FAMILIES.map(|family| {
        let (world, address) = world_end(&lab, family);
        let by = ["192.168.7.2", "fd00:7::2"][family];
        for address in [address, by.parse().unwrap()] {
            traffic::ping(node, address, 56).unwrap();
        }
        ip_tables(node, family, "-t mangle -A PREROUTING -i pw+ -j MARK --set-mark 7");
        follow(node, family, by, &["fwmark", "7"]);
        let to = SocketAddr::new(address, 53);
        (udp(world, to), udp(&pod, (ANY[family], 40000)), to)
    });
    for round in 0..4 {
        for ((server, client, to), own) in flows.iter().zip(own) {
            let seen = ask(client, server, *to, &format!("{to}, round {round}"));
            assert_eq!(seen.ip(), own, "round {round}");
        }
        std::thread::sleep(A_WHILE / 3);
    }
}

#[test]
fn rules_that_change_a_first_packet_in_any_way_see_all() {
    const CONNECTIONS: usize = 10;
    const TTL: [&str; 2] = ["-j TTL --ttl-set 17", "-j HL --hl-set 17"];
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let node = scene.node();
        for family in FAMILIES {
            ip_tables(
                node,
                family,
                "-t mangle -A FORWARD -p tcp --dport 443 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000",
            );
            for (port, change) in [(53, "-j DSCP --set-dscp 10"), (54, TTL[family])] {
                ip_tables(node, family, &format!("-t mangle -A POSTROUTING -p udp --dport {port} {change}"));
            }
            for number in 0..CONNECTIONS {
                let Connection { client, server } = scene.connect(family);
                let peer = server.peer_addr().unwrap();
                assert_alive(&client, &server, &format!("{mode:?}, {peer}, {number}"));
                let filter = format!("( dport = :{} )", peer.port());
                let shown = scene.lab.world().exec(&["ss", "-Htin", &filter]).unwrap();
                let mss =
                    shown.split_whitespace().find_map(|word| word.strip_prefix("mss:")?.parse::<u32>().ok());
                assert!(mss.is_some_and(|mss| mss <= 1000), "{mode:?}, {peer}, {number}: {shown}");
            }
            for port in [53, 54] {
                let server = udp(scene.lab.world(), (ANY[family], port));
                let client = udp(&scene.pod, (ANY[family], 40000));
                let to = scene.to(family, port);
                for number in 0..CONNECTIONS {
                    ask(&client, &server, to, &format!("{mode:?}, {to}, {number}"));
                }
                let tool = ["iptables", "ip6tables"][family];
                let counted = node.exec(&[tool, "-t", "mangle", "-nvxL", "POSTROUTING"]).unwrap();
                let rule = counted.lines().find(|line| line.contains(&format!("dpt:{port}"))).unwrap();
                let packets = rule.split_whitespace().next().unwrap();
                assert_eq!(packets, CONNECTIONS.to_string(), "{mode:?}, to {to}: {counted}");
            }
        }
    }
}

#[test]
fn what_the_host_keeps_or_refuses_is_kept_and_refused() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        for family in FAMILIES {
            the_host_keeps_and_refuses(&scene, family);
        }
    }
}

fn the_host_keeps_and_refuses(scene: &Scene, family: usize) {
    let (node, any) = (scene.node(), ANY[family]);
    let here = SocketAddr::new(node.addresses()[family], 8081);
    for protocol in ["tcp", "udp"] {
        let keep = format!("-i pw+ -p {protocol} --dport 80 -j DNAT --to-destination {here}");
        ip_tables(node, family, &format!("-t nat -A PREROUTING {keep}"));
        ip_tables(node, family, &format!("-A FORWARD -p {protocol} --dport 81 -j REJECT"));
    }
    let (listener, server) = (listen(node, (any, 8081)), udp(node, (any, 8081)));
    let client = udp(&scene.pod, (any, 40000));
    let [kept, refused] = [80, 81].map(|port| scene.to(family, port));
    let connection = connect_from(&scene.pod, (any, 0), kept).unwrap();
    let (accepted, peer) = listener.accept().unwrap();
    let what = format!("{:?}, {}", scene.lab.mode(), kept.ip());
    assert_eq!(peer.ip(), scene.pod.addresses()[family], "{what}");
    for round in 0..3 {
        assert_alive(&connection, &accepted, &format!("{what}, round {round}"));
        ask(&client, &server, kept, &format!("{what}, round {round}"));
    }
    let asking = udp(&scene.pod, (any, 40001));
    asking.connect(refused).unwrap();
    for round in 0..3 {
        let error = connect_from(&scene.pod, (any, 0), refused).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{what}, round {round}");
        assert_eq!(refusal(&asking), ErrorKind::ConnectionRefused, "{what}, round {round}");
    }
}

/// Returns the error that a connected socket gets when it sends.
fn refusal(socket: &UdpSocket) -> ErrorKind {
    socket.send(b"?").and_then(|_| socket.recv(&mut [0; 10])).unwrap_err().kind()
}

/// Gives what a routing rule selects a default route of its own.
fn follow(node: &Node, family: usize, gateway: &str, selector: &[&str]) {
    let ip = ["ip", ["-4", "-6"][family]];
    let route = ["route", "add", "default", "via", gateway, "table", "100"];
    node.exec(&[&ip[..], &route].concat()).unwrap();
    node.exec(&[&ip, &["rule", "add"], selector, &["lookup", "100"]].concat()).unwrap();
}

/// Adds the service's rules: for both families and protocols, to the world's server.
fn serve_outside(scene: &Scene) {
    for (family, world) in scene.lab.world_addresses().into_iter().enumerate() {
        for protocol in ["tcp", "udp"] {
            let service = SERVICE[family];
            let rule = format!("-d {service} -p {protocol} -j DNAT --to-destination {world}");
            ip_tables(scene.node(), family, &format!("-t nat -A PREROUTING {rule}"));
        }
    }
}
