//! Connections of pods to known destinations: the host's rules have just let another connection
//! pass unchanged, so these begin past the rules.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};

use xtask::lab::{Lab, Mode, Ns};

use super::past_stack::{Connection, Scene};
use super::{assert_alive, tracked};
use crate::service::{drop_invalid, service};
use crate::sockets::{connect_by, connect_from, listen, wait_until};
use crate::{ANY, FAMILIES, Place as _, ip_tables};

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
        for family in FAMILIES {
            let what = format!("{mode:?}, {}", scene.to(family, 443));
            let unseen = wait_until(|| {
                let Connection { client, server } = scene.connect(family);
                assert_alive(&client, &server, &what);
                let port = client.local_addr().unwrap().port();
                drop(client);
                assert_eq!((&server).read(&mut [0]).unwrap(), 0, "{what}: the server sees the client's FIN");
                (!is_tracked(&scene, family, port)).then_some(())
            });
            assert!(unseen.is_some(), "{what}: the rules see every connection");
        }

        let arguments = ["--host-rules-see", "each-connection"];
        let scene =
            Scene::of(Lab::builder().nodes(1).mode(mode).agent_arguments(&arguments).build().unwrap());
        drop_invalid(&scene.lab);
        for family in FAMILIES {
            let what = format!("{mode:?}, {}", scene.to(family, 443));
            for number in 0..CONNECTIONS {
                let Connection { client, server } = scene.connect(family);
                assert_alive(&client, &server, &format!("{what}, {number}"));
                let port = client.local_addr().unwrap().port();
                let is_seen = is_tracked(&scene, family, port);
                assert!(is_seen, "{what}: the rules have not seen connection {number}");
            }
        }
    }
}

#[test]
fn a_new_rule_is_heard_before_long_and_from_then_on_always() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        for family in FAMILIES {
            for _ in 0..CONNECTIONS {
                scene.connect(family);
            }
            ip_tables(scene.node(), family, &format!("-I FORWARD {RESET}"));
            let to = scene.to(family, 443);
            let connect = || connect_from(&scene.pod, (ANY[family], 0), to);
            let refused = wait_until(|| connect().err());
            let refused = refused.expect("connections go past the new rule for ever");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{mode:?}, {to}");
            for _ in 0..CONNECTIONS {
                assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused, "{mode:?}, {to}");
            }
        }
    }
}

#[test]
fn one_pods_destinations_tell_nothing_of_other_pods() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        let other = scene.lab.node(0).add_pod("other").unwrap();
        let world = scene.lab.world();
        for (family, (elsewhere, length)) in
            [("198.51.100.11", 24), ("2001:db8::11", 64)].into_iter().enumerate()
        {
            let elsewhere = SocketAddr::new(elsewhere.parse().unwrap(), 443);
            world.add_address("eth0", elsewhere.ip(), length).unwrap();
            let _listener = listen(world, (ANY[family], 444));
            let of_other = format!("-s {}", other.end(family).1);
            for rule in [of_other, "--dport 444".into(), format!("-d {}", elsewhere.ip())] {
                ip_tables(scene.node(), family, &format!("-A FORWARD {RESET} {rule}"));
            }
            let refused: [(&Ns, SocketAddr); 3] = [
                (&other, scene.to(family, 443)),
                (&scene.pod, scene.to(family, 444)),
                (&scene.pod, elsewhere),
            ];
            for number in 0..CONNECTIONS {
                let Connection { client, server } = scene.connect(family);
                assert_alive(&client, &server, &format!("{mode:?}, {number}"));
                for (ns, to) in refused {
                    let error = connect_from(ns, (ANY[family], 0), to).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{mode:?}, {number}: {to}");
                }
            }
        }
    }
}

#[test]
fn a_service_in_front_of_a_known_destination_stays_a_service() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let scene = Scene::new(mode);
        drop_invalid(&scene.lab);
        let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
        for (service, world) in service(9).into_iter().zip(scene.lab.world_addresses()) {
            let family = usize::from(world.is_ipv6());
            let rule = format!("-d {service} -p tcp -j DNAT --to-destination {world}");
            ip_tables(scene.node(), family, &format!("-t nat -A PREROUTING {rule}"));
            for number in 0..CONNECTIONS {
                for address in [world, service] {
                    let Connection { client, server } = scene.connect_to(address);
                    assert_eq!(client.peer_addr().unwrap().ip(), address);
                    assert_alive(&client, &server, &format!("{mode:?}, {number}: {address}"));
                    open.push((client, server));
                }
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
        for family in FAMILIES {
            let to = scene.to(family, 443);
            // Use each port once: a process that another test starts may hold a closed socket for a
            // moment.
            for own in 40000..40005 {
                let from = (ANY[family], own);
                let by_host = connect_by(node, Some(node.uplink()), from, to).unwrap();
                let of_host = scene.accept(family);
                assert_eq!(of_host.peer_addr().unwrap().port(), own, "{mode:?}, {to}");
                scene.connect(family);
                let by_pod = connect_from(&scene.pod, from, to).unwrap();
                let of_pod = scene.accept(family);
                let port = of_pod.peer_addr().unwrap().port();
                assert_ne!(port, own, "{mode:?}, {to}: the pod has the host's port");
                assert_alive(&by_pod, &of_pod, &format!("{mode:?}, {to}, the pod's"));
                assert_alive(&by_host, &of_host, &format!("{mode:?}, {to}, the host's"));
            }
        }
    }
}

/// Returns whether connection tracking has an entry for a connection from this port.
fn is_tracked(scene: &Scene, family: usize, port: u16) -> bool {
    tracked(scene.node(), family, &["-p", "tcp"]).contains(&format!(" sport={port} dport=443 "))
}
