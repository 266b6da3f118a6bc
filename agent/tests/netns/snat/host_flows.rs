//! The node's own flows keep every packet, no matter whether they or a pod's flow had the 5-tuple
//! first.

use std::net::{IpAddr, SocketAddr};

use podwire_common::reason::Path;
use xtask::lab::{Lab, Mode, Ns};

use super::{ask, assert_alive, of_node};
use crate::sockets::{connect_from, listen, udp};
use crate::{ANY, FAMILIES, ip_tables, keep_families_apart, world_end};

const PORT: u16 = 40000;

#[derive(Clone, Copy, Debug)]
enum First {
    Pod,
    Host,
}

#[test]
fn connections_of_host_and_pod_from_one_port_both_live() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        for first in [First::Pod, First::Host] {
            let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
            let node = lab.node(0);
            let pod = node.add_pod("client").unwrap();
            for family in FAMILIES {
                let (world, address) = world_end(&lab, family);
                let server = listen(world, (ANY[family], 443));
                let connections = order(first, &pod, node).map(|ns| {
                    let client = connect_from(ns, (ANY[family], PORT), (address, 443)).unwrap();
                    let (accepted, peer) = server.accept().unwrap();
                    assert_eq!(peer.ip(), node.addresses()[family], "{first:?}");
                    (client, accepted, peer)
                });
                let ports = [0, 1].map(|number| connections[number].2.port());
                assert_eq!(ports[0], PORT, "{first:?}, {address}: the first keeps its port");
                assert_ne!(ports[1], PORT, "{first:?}, {address}: the second gets another");
                for _ in 0..2 {
                    for (client, accepted, peer) in &connections {
                        assert_alive(client, accepted, &format!("{first:?} first: {peer}"));
                    }
                }
            }
        }
    }
}

#[test]
fn datagrams_of_host_and_pod_from_one_port_find_their_senders() {
    for first in [First::Pod, First::Host] {
        let lab = Lab::builder().nodes(1).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        for family in FAMILIES {
            let (world, address) = world_end(&lab, family);
            let server = udp(world, (ANY[family], 53));
            let to = SocketAddr::new(address, 53);
            let senders = order(first, &pod, node).map(|ns| {
                let client = udp(ns, (ANY[family], PORT));
                let peer = ask(&client, &server, to, &format!("{first:?} first, {} to {to}", ns.name()));
                (client, peer)
            });
            let peers = senders.each_ref().map(|(_, peer)| *peer);
            let own = of_node(node.addresses()[family], PORT);
            assert_eq!(peers[0], own, "{first:?}: the first keeps its port");
            assert_ne!(peers[1].port(), PORT, "{first:?}, {to}");
            let what = format!("{first:?} first, again to {to}");
            let again = senders.map(|(client, _)| ask(&client, &server, to, &what));
            assert_eq!(again, peers, "{first:?}: and they stay");
        }
    }
}

#[test]
fn pings_of_host_and_pod_with_one_identifier_find_senders() {
    for first in [First::Pod, First::Host] {
        let lab = Lab::builder().nodes(1).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        for world in lab.world_addresses().iter().map(ToString::to_string) {
            for _ in 0..2 {
                for ns in order(first, &pod, node) {
                    ns.exec(&["ping", "-e", "7777", "-c", "1", "-W", "5", &world])
                        .unwrap_or_else(|error| panic!("{first:?} first, from {}: {error}", ns.name()));
                }
            }
        }
    }
}

#[test]
fn port_that_host_rules_gave_to_a_container_is_not_taken() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    // A container of another engine is masqueraded to a fixed port. No socket on the node has that
    // flow.
    let container = add_container(&lab, &["udp", "tcp"]);
    for family in FAMILIES {
        let (world, address) = world_end(&lab, family);
        let (any, of_node) = (ANY[family], of_node(node.addresses()[family], PORT));
        let server = udp(world, (any, 53));
        let to = SocketAddr::new(address, 53);
        let theirs = udp(&container, (any, 5555));
        let ours = udp(&pod, (any, PORT));
        assert_eq!(ask(&theirs, &server, to, "container"), of_node);
        assert_ne!(ask(&ours, &server, to, "pod").port(), PORT, "{to}");
        assert_eq!(ask(&theirs, &server, to, "container again"), of_node);

        let server = listen(world, (any, 443));
        let connections = [(&container, 5555), (&*pod, PORT)].map(|(ns, port)| {
            let client = connect_from(ns, (any, port), (address, 443)).unwrap();
            let (accepted, peer) = server.accept().unwrap();
            (client, accepted, peer)
        });
        assert_eq!(connections[0].2, of_node);
        assert_ne!(connections[1].2.port(), PORT, "{address}");
        for (client, accepted, peer) in &connections {
            assert_alive(client, accepted, &peer.to_string());
        }
    }
}

#[test]
fn container_second_to_a_pods_port_gives_way_and_lives() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    keep_families_apart(&[lab.world(), &pod]);
    let ours = FAMILIES.map(|family| {
        let (world, address) = world_end(&lab, family);
        let (server, client) = (udp(world, (ANY[family], 53)), udp(&pod, (ANY[family], PORT)));
        let to = SocketAddr::new(address, 53);
        assert_eq!(ask(&client, &server, to, "pod"), of_node(node.addresses()[family], PORT));
        (server, client, to)
    });

    let container = add_container(&lab, &["udp"]);
    let given_way = || node.traffic().unwrap().get(Path::HostSnatOut.name()).copied().unwrap_or_default();
    for (family, (server, client, to)) in ours.iter().enumerate() {
        let (theirs, before) = (udp(&container, (ANY[family], 5555)), given_way());
        assert_ne!(ask(&theirs, server, *to, "container").port(), PORT, "{to}");
        assert_eq!(ask(client, server, *to, "pod again"), of_node(node.addresses()[family], PORT));
        assert!(given_way() > before, "{to}");
    }
}

#[test]
fn no_flow_is_given_a_port_that_the_node_keeps_for_others() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--snat-ports", "30000-33000"]).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    for family in FAMILIES {
        let (world, address) = world_end(&lab, family);
        let server = udp(world, (ANY[family], 53));
        let to = SocketAddr::new(address, 53);
        // A socket of the host listens here: SNAT does not take its port either.
        let _listening = udp(node, (ANY[family], 32900));
        for own in (30000..30020).chain([8472, 32767, 32900]) {
            let client = udp(&pod, (ANY[family], own));
            let seen = ask(&client, &server, to, &format!("{own} to {to}")).port();
            let is_fit = (32768..=33000).contains(&seen) && seen != 32900;
            assert!(is_fit, "own port {own}, seen as {seen} by {address}");
        }
    }
}

/// Adds a container of another engine. The host's rules masquerade its flows of both families and
/// of these protocols to one port.
fn add_container(lab: &Lab, protocols: &[&str]) -> Ns {
    const BRIDGE: &str = "br-other";
    let node = lab.node(0);
    let container = lab.add_namespace("container").unwrap();
    xtask::lab::connect(node, BRIDGE, &container, "eth0").unwrap();
    for (family, (gateway, own, length)) in
        [("172.17.0.1", "172.17.0.2", 24), ("fd00:172:17::1", "fd00:172:17::2", 64)].into_iter().enumerate()
    {
        let [gateway, own]: [IpAddr; 2] = [gateway, own].map(|address| address.parse().unwrap());
        node.add_address(BRIDGE, gateway, length).unwrap();
        container.add_address("eth0", own, length).unwrap();
        container.ip(&format!("route add default via {gateway}\n")).unwrap();
        for protocol in protocols {
            let masquerade = format!("-s {own} -p {protocol} -j MASQUERADE --to-ports {PORT}");
            ip_tables(node, family, &format!("-t nat -A POSTROUTING {masquerade}"));
        }
    }
    container
}

/// Returns the two senders in the order in which they begin.
fn order<'a>(first: First, pod: &'a Ns, host: &'a Ns) -> [&'a Ns; 2] {
    match first {
        First::Pod => [pod, host],
        First::Host => [host, pod],
    }
}
