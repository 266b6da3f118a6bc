//! Connections of pods to known destinations: the host's rules have just let another connection
//! pass unchanged, so these begin past the rules.

use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use xtask::lab::{Lab, Mode, Ns};

use super::assert_alive;
use super::past_stack::{Connection, Scene};
use crate::service::{drop_invalid, iptables};
use crate::sockets::{connect_by, connect_from, listen, wait_until};

/// The number of connections, one after the other.
const CONNECTIONS: usize = 30;
/// A refusal by TCP reset: the kernel sends one to every client, but limits the number of ICMP
/// errors.
const RESET: &str = "-p tcp -j REJECT --reject-with tcp-reset";

#[test]
fn the_rules_see_some_connections_or_each_as_is_asked_for() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let unseen = wait_until(|| {
            let Connection { client, server } = scene.connect();
            assert_alive(&client, &server, &format!("{mode:?}"));
            let port = client.local_addr().unwrap().port();
            drop(client);
            assert_eq!((&server).read(&mut [0]).unwrap(), 0, "{mode:?}: the server sees the client's FIN");
            (!is_tracked(&scene, port)).then_some(())
        });
        assert!(unseen.is_some(), "{mode:?}: the rules see every connection");

        let arguments = ["--host-rules-see", "each-connection"];
        let scene =
            Scene::of(Lab::builder().nodes(1).mode(mode).agent_arguments(&arguments).build().unwrap());
        drop_invalid(&scene.lab);
        for number in 0..CONNECTIONS {
            let Connection { client, server } = scene.connect();
            assert_alive(&client, &server, &format!("{mode:?}, {number}"));
            let port = client.local_addr().unwrap().port();
            assert!(is_tracked(&scene, port), "{mode:?}: the rules have not seen connection {number}");
        }
    }
}

#[test]
fn a_new_rule_is_heard_before_long_and_from_then_on_always() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for _ in 0..CONNECTIONS {
            scene.connect();
        }
        iptables(scene.node(), &format!("-I FORWARD {RESET}"));
        let connect = || connect_from(&scene.pod, "0.0.0.0:0", scene.to(443));
        let refused = wait_until(|| connect().err()).expect("connections go past the new rule for ever");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{mode:?}");
        for _ in 0..CONNECTIONS {
            assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused, "{mode:?}");
        }
    }
}

#[test]
fn one_pods_destinations_tell_nothing_of_other_pods() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let other = scene.lab.node(0).add_pod("other").unwrap();
        let world = scene.lab.world();
        let elsewhere = "198.51.100.11";
        world.ip(&format!("address add {elsewhere}/24 dev eth0\n")).unwrap();
        let _listener = listen(world, "0.0.0.0:444");
        for rule in [format!("-s {}", other.address()), "--dport 444".into(), format!("-d {elsewhere}")] {
            iptables(scene.node(), &format!("-A FORWARD {RESET} {rule}"));
        }
        let to = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
        let refused: [(&Ns, SocketAddr); 3] =
            [(&other, scene.to(443)), (&scene.pod, scene.to(444)), (&scene.pod, to(elsewhere, 443))];
        for number in 0..CONNECTIONS {
            let Connection { client, server } = scene.connect();
            assert_alive(&client, &server, &format!("{mode:?}, {number}"));
            for (ns, to) in refused {
                let error = connect_from(ns, "0.0.0.0:0", to).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{mode:?}, {number}: {to}");
            }
        }
    }
}

#[test]
fn a_service_in_front_of_a_known_destination_stays_a_service() {
    const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 9);
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let rule = format!("-d {SERVICE} -p tcp -j DNAT --to-destination {}", scene.lab.world_address());
        iptables(scene.node(), &format!("-t nat -A PREROUTING {rule}"));
        let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
        for number in 0..CONNECTIONS {
            for address in [scene.lab.world_address(), IpAddr::V4(SERVICE)] {
                let Connection { client, server } = scene.connect_to(address);
                assert_eq!(client.peer_addr().unwrap().ip(), address);
                assert_alive(&client, &server, &format!("{mode:?}, {number}: {address}"));
                open.push((client, server));
            }
        }
        for (number, (client, server)) in open.iter().enumerate() {
            assert_alive(client, server, &format!("{mode:?}, in the end: {number}"));
        }
    }
}

/// The pod's connection begins past the rules, so the program at the pod's link looks for the
/// host's sockets. That lookup does not find a socket that is bound to the uplink: the reservation
/// of the host's flow must keep the port.
#[test]
fn uplink_bound_connection_of_the_host_keeps_its_port() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let node = scene.node();
        // Use each port once: a process that another test starts may hold a closed socket for a
        // moment.
        for own in 40000..40005 {
            let from = ("0.0.0.0", own);
            let by_host = connect_by(node, Some(node.uplink()), from, scene.to(443)).unwrap();
            let of_host = scene.accept();
            assert_eq!(of_host.peer_addr().unwrap().port(), own, "{mode:?}");
            scene.connect();
            let by_pod = connect_from(&scene.pod, from, scene.to(443)).unwrap();
            let of_pod = scene.accept();
            let port = of_pod.peer_addr().unwrap().port();
            assert_ne!(port, own, "{mode:?}: the pod has the host's port");
            assert_alive(&by_pod, &of_pod, &format!("{mode:?}, the pod's"));
            assert_alive(&by_host, &of_host, &format!("{mode:?}, the host's"));
        }
    }
}

/// Returns whether connection tracking has an entry for a connection from this port.
fn is_tracked(scene: &Scene, port: u16) -> bool {
    let tracked = scene.node().exec(&["conntrack", "-L", "-p", "tcp"]).unwrap();
    tracked.contains(&format!(" sport={port} dport=443 "))
}
