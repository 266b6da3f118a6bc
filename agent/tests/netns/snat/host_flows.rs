//! The node's own flows keep every packet, no matter whether they or a pod's flow had the 5-tuple
//! first.

use std::net::SocketAddr;

use podwire_common::reason::Path;
use xtask::lab::{Lab, Mode};

use super::{ask, assert_alive, of_node};
use crate::service::iptables;
use crate::sockets::{connect_from, listen, udp};

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
            let server = listen(lab.world(), "0.0.0.0:443");
            let to = SocketAddr::new(lab.world_address(), 443);
            let connections = order(first, &pod, node).map(|ns| {
                let client = connect_from(ns, ("0.0.0.0", PORT), to).unwrap();
                let (accepted, peer) = server.accept().unwrap();
                assert_eq!(peer.ip(), node.address(), "{first:?}");
                (client, accepted, peer)
            });
            assert_eq!(connections[0].2.port(), PORT, "{first:?}: the first keeps its port");
            assert_ne!(connections[1].2.port(), PORT, "{first:?}: the second gets another");
            for _ in 0..2 {
                for (client, accepted, peer) in &connections {
                    assert_alive(client, accepted, &format!("{first:?} first: {peer}"));
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
        let server = udp(lab.world(), "0.0.0.0:53");
        let to = SocketAddr::new(lab.world_address(), 53);
        let senders = order(first, &pod, node).map(|ns| {
            let client = udp(ns, format!("0.0.0.0:{PORT}"));
            let peer = ask(&client, &server, to, &format!("{first:?} first, {}", ns.name()));
            (client, peer)
        });
        let peers = senders.each_ref().map(|(_, peer)| *peer);
        assert_eq!(peers[0], of_node(node.address(), PORT), "{first:?}: the first keeps its port");
        assert_ne!(peers[1].port(), PORT, "{first:?}");
        let again = senders.map(|(client, _)| ask(&client, &server, to, &format!("{first:?} first, again")));
        assert_eq!(again, peers, "{first:?}: and they stay");
    }
}

#[test]
fn pings_of_host_and_pod_with_one_identifier_find_senders() {
    for first in [First::Pod, First::Host] {
        let lab = Lab::builder().nodes(1).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("client").unwrap();
        let world = lab.world_address().to_string();
        for _ in 0..2 {
            for ns in order(first, &pod, node) {
                ns.exec(&["ping", "-e", "7777", "-c", "1", "-W", "5", &world])
                    .unwrap_or_else(|error| panic!("{first:?} first, from {}: {error}", ns.name()));
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
    let container = lab.add_namespace("container").unwrap();
    xtask::lab::connect(node, "br-other", &container, "eth0").unwrap();
    node.ip("address add 172.17.0.1/24 dev br-other\n").unwrap();
    container.ip("address add 172.17.0.2/24 dev eth0\nroute add default via 172.17.0.1\n").unwrap();
    for protocol in ["udp", "tcp"] {
        let rule =
            format!("-t nat -A POSTROUTING -s 172.17.0.2 -p {protocol} -j MASQUERADE --to-ports {PORT}");
        iptables(node, &rule);
    }

    let server = udp(lab.world(), "0.0.0.0:53");
    let to = SocketAddr::new(lab.world_address(), 53);
    let theirs = udp(&container, "0.0.0.0:5555");
    let ours = udp(&pod, format!("0.0.0.0:{PORT}"));
    assert_eq!(ask(&theirs, &server, to, "container"), of_node(node.address(), PORT));
    assert_ne!(ask(&ours, &server, to, "pod").port(), PORT);
    assert_eq!(ask(&theirs, &server, to, "container again"), of_node(node.address(), PORT));

    let server = listen(lab.world(), "0.0.0.0:443");
    let to = SocketAddr::new(lab.world_address(), 443);
    let connections = [(&container, 5555), (&*pod, PORT)].map(|(ns, port)| {
        let client = connect_from(ns, ("0.0.0.0", port), to).unwrap();
        let (accepted, peer) = server.accept().unwrap();
        (client, accepted, peer)
    });
    assert_eq!(connections[0].2, of_node(node.address(), PORT));
    assert_ne!(connections[1].2.port(), PORT);
    for (client, accepted, peer) in &connections {
        assert_alive(client, accepted, &peer.to_string());
    }
}

#[test]
fn container_second_to_a_pods_port_gives_way_and_lives() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let to = SocketAddr::new(lab.world_address(), 53);
    let ours = udp(&pod, format!("0.0.0.0:{PORT}"));
    assert_eq!(ask(&ours, &server, to, "pod"), of_node(node.address(), PORT));

    let container = lab.add_namespace("container").unwrap();
    xtask::lab::connect(node, "br-other", &container, "eth0").unwrap();
    node.ip("address add 172.17.0.1/24 dev br-other\n").unwrap();
    container.ip("address add 172.17.0.2/24 dev eth0\nroute add default via 172.17.0.1\n").unwrap();
    iptables(node, &format!("-t nat -A POSTROUTING -s 172.17.0.2 -p udp -j MASQUERADE --to-ports {PORT}"));
    let theirs = udp(&container, "0.0.0.0:5555");
    assert_ne!(ask(&theirs, &server, to, "container").port(), PORT);
    assert_eq!(ask(&ours, &server, to, "pod again"), of_node(node.address(), PORT));
    assert!(node.traffic().unwrap()[Path::HostSnatOut.name()] > 0);
}

#[test]
fn no_flow_is_given_a_port_that_the_node_keeps_for_others() {
    let lab = Lab::builder().nodes(1).agent_arguments(&["--snat-ports", "30000-33000"]).build().unwrap();
    let node = lab.node(0);
    let pod = node.add_pod("client").unwrap();
    let server = udp(lab.world(), "0.0.0.0:53");
    let to = SocketAddr::new(lab.world_address(), 53);
    // A socket of the host listens here: SNAT does not take its port either.
    let _listening = udp(node, "0.0.0.0:32900");
    for own in (30000..30020).chain([8472, 32767, 32900]) {
        let client = udp(&pod, format!("0.0.0.0:{own}"));
        let seen = ask(&client, &server, to, &own.to_string()).port();
        assert!((32768..=33000).contains(&seen) && seen != 32900, "own port {own}, seen as {seen}");
    }
}

/// Returns the two senders in the order in which they begin.
fn order<'a>(first: First, pod: &'a xtask::lab::Ns, host: &'a xtask::lab::Ns) -> [&'a xtask::lab::Ns; 2] {
    match first {
        First::Pod => [pod, host],
        First::Host => [host, pod],
    }
}
