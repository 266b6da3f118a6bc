//! Links without link header: pods, nodes and the world are connected by tun devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podwire_common::reason::Path::{
    DirectIn, DirectOut, HostPortIn, HostPortOut, SnatIn, SnatOut, StackEncapsulated, TunnelIn, TunnelOut,
    TunnelToStack,
};
use serde_json::json;
use xtask::lab::tun::TunCable;
use xtask::lab::{Lab, Mode, Node, Ns, traffic};

use crate::check::{Counted, Row, check};
use crate::icmp_errors::path_mtu;
use crate::sockets::{udp, unspecified, wait_until};
use crate::{FAMILIES, Place as _, ip_tables};

const HERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 168, 7, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x192, 0x168, 7, 0, 0, 0, 1)),
];
const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 9)),
];
const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 9)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 9))];
const SHRUNK: u32 = 1300;

#[test]
fn nodes_whose_internal_ips_are_on_tun_reach_each_other() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agents(false).build().unwrap();
        let [one, two] = [lab.node(0), lab.node(1)];
        let _cable = TunCable::connect(one, two, "tun0").unwrap();
        for (node, other) in [(one, two), (two, one)] {
            for (family, (length, at_once)) in [(24, ""), (64, "nodad")].into_iter().enumerate() {
                let [own, peer] = [node, other].map(|node| node.addresses()[family]);
                let lines = format!(
                    "address delete {own}/{length} dev eth0\naddress add {own} peer {peer} dev tun0 {at_once}\n"
                );
                node.ip(&lines).unwrap();
            }
        }
        lab.nodes().iter().try_for_each(Node::start_agent).unwrap();
        pods_and_nodes(&lab, mode);
    }
}

#[test]
fn the_tunnel_goes_by_tun_where_the_route_to_a_node_does() {
    let (lab, _cable) = nodes_by_tun();
    pods_and_nodes(&lab, Mode::Vxlan);
}

/// Checks that pods of both nodes and the nodes talk to each other by the programs' paths.
fn pods_and_nodes(lab: &Lab, mode: Mode) {
    let [one, two] = [lab.node(0), lab.node(1)];
    let (near, far) = (one.add_pod("near").unwrap(), two.add_pod("far").unwrap());
    let (out, into) = match mode {
        Mode::Vxlan => (TunnelOut, TunnelIn),
        Mode::Direct => (DirectOut, DirectIn),
    };
    let ways = [(0, out), (1, into), (1, out), (0, into)];
    for family in FAMILIES {
        check(
            lab,
            &[
                Row::new("pods", near.end(family), far.end(family)).takes(&ways),
                Row::new("pods, the other way", far.end(family), near.end(family)).takes(&ways),
                Row::new("a node to a pod", one.end(family), far.end(family)),
                Row::new("a pod to a node", near.end(family), two.end(family)),
                Row::new("nodes", one.end(family), two.end(family)),
            ],
        );
    }
}

#[test]
fn pods_reach_the_world_and_are_reached_by_tun() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let (lab, world, _cable) = world_by_tun(mode);
        let node = lab.node(0);
        let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let pod = node.add_pod_with("pod", &mapping).unwrap();
        for family in FAMILIES {
            let (here, there) = (HERE[family], (&world, WORLD[family]));
            let to_world = Row::new("a pod to the world", pod.end(family), there)
                .seen_as(here)
                .takes(&[(0, SnatOut), (0, SnatIn)]);
            check(
                &lab,
                &[
                    Row { learns_mtu: mode == Mode::Vxlan, ..to_world },
                    Row::new("the node to the world", (node, here), there),
                ],
            );
            // These connections go past the host's rules from the first packet on.
            for _ in 0..4 {
                traffic::tcp_exchange(&pod, &world, there.1, 8443, 1 << 20).unwrap();
            }
            let before = Counted::quiet(&lab);
            let route = traffic::Route::translated((here, 8080).into(), 80);
            let exchange = traffic::tcp_exchange_on(&world, &pod, route, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_server.ip(), there.1, "{mode:?}");
            Counted::quiet(&lab).since(&before).expect(&[(0, HostPortIn), (0, HostPortOut)], &[]).unwrap();
        }
    }
}

#[test]
fn an_error_of_the_world_reaches_the_pod_by_tun() {
    let (lab, world, _cable) = world_by_tun(Mode::Vxlan);
    let pod = lab.node(0).add_pod("pod").unwrap();
    for address in WORLD {
        // No socket listens there: the world answers "port unreachable" about the translated
        // packet.
        let refused = udp(&pod, (unspecified(address), 0));
        refused.connect((address, 9)).unwrap();
        refused.send(b"?").unwrap();
        let error = refused.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}: {error}");
    }
    // The pod also learns of a path with a smaller MTU.
    for ns in [&world, &**lab.node(0)] {
        ns.ip(&format!("link set dev tun0 mtu {SHRUNK}\n")).unwrap();
    }
    for address in WORLD {
        traffic::tcp_exchange(&pod, &world, address, 8080, 1 << 20).unwrap();
        let sender = udp(&pod, (unspecified(address), 0));
        let learnt = wait_until(|| {
            sender.send_to(&[7; 1400], (address, 9)).ok();
            path_mtu(&pod, address).filter(|mtu| *mtu == SHRUNK)
        });
        assert!(learnt.is_some(), "{address}: {:?}", path_mtu(&pod, address));
    }
}

/// The host stack routes a pod's packet for a service to the other node. The packet must not leave
/// bare: the program puts it into the tunnel, on a link without link header too.
#[test]
fn what_the_stack_sends_by_tun_is_encapsulated() {
    let (lab, _cable) = nodes_by_tun();
    let [one, two] = [lab.node(0), lab.node(1)];
    let near = one.add_pod("near").unwrap();
    for (family, service) in SERVICE.into_iter().enumerate() {
        let backend = SocketAddr::new(two.addresses()[family], 6443);
        let rule =
            format!("-t nat -A PREROUTING -d {service} -p tcp --dport 80 -j DNAT --to-destination {backend}");
        ip_tables(one, family, &rule);
        let before = Counted::quiet(&lab);
        let route = traffic::Route::translated((service, 80).into(), backend.port());
        let exchange = traffic::tcp_exchange_on(&near, two, route, 1 << 20).unwrap();
        assert_eq!(exchange.peer_seen_by_server.ip(), near.addresses()[family]);
        let ways = [(0, StackEncapsulated), (1, TunnelToStack)];
        Counted::quiet(&lab).since(&before).expect(&ways, &[]).unwrap();
    }
}

/// Returns nodes with routes to each other by a tun device.
fn nodes_by_tun() -> (Lab, TunCable) {
    let lab = Lab::builder().agents(false).build().unwrap();
    let [one, two] = [lab.node(0), lab.node(1)];
    let cable = TunCable::connect(one, two, "tun0").unwrap();
    for (node, other) in [(one, two), (two, one)] {
        for (own, peer) in node.addresses().into_iter().zip(other.addresses()) {
            node.ip(&format!("route add {peer} dev tun0 src {own}\n")).unwrap();
        }
    }
    lab.nodes().iter().try_for_each(Node::start_agent).unwrap();
    (lab, cable)
}

/// Returns a node with a default route by a tun device, and the namespace behind it, which has
/// [`WORLD`].
fn world_by_tun(mode: Mode) -> (Lab, Ns, TunCable) {
    let lab = Lab::builder().nodes(1).mode(mode).agents(false).build().unwrap();
    let (node, world) = (lab.node(0), lab.add_namespace("far").unwrap());
    let cable = TunCable::connect(node, &world, "tun0").unwrap();
    for (family, everywhere) in ["0.0.0.0/0", "::/0"].into_iter().enumerate() {
        for (ns, address) in [(&**node, HERE[family]), (&world, WORLD[family])] {
            ns.add_address("tun0", address, if address.is_ipv4() { 32 } else { 128 }).unwrap();
            ns.ip(&format!("route replace {everywhere} dev tun0\n")).unwrap();
        }
    }
    node.start_agent().unwrap();
    (lab, world, cable)
}
