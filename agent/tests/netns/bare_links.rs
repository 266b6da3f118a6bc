//! Links without link header: pods, nodes and the world are connected by tun devices.

use std::net::{IpAddr, Ipv4Addr};

use podwire_common::reason::Path::{
    DirectIn, DirectOut, HostPortIn, HostPortOut, SnatIn, SnatOut, StackEncapsulated, TunnelIn, TunnelOut,
    TunnelToStack,
};
use serde_json::json;
use xtask::lab::tun::TunCable;
use xtask::lab::{Lab, Mode, Node, Ns, traffic};

use crate::check::{Counted, Row, check};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, 1));
const WORLD: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9));

#[test]
fn nodes_whose_internal_ips_are_on_tun_reach_each_other() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).agents(false).build().unwrap();
        let [one, two] = [lab.node(0), lab.node(1)];
        let _cable = TunCable::connect(one, two, "tun0").unwrap();
        for (node, other) in [(one, two), (two, one)] {
            let (own, peer) = (node.address(), other.address());
            node.ip(&format!("address delete {own}/24 dev eth0\naddress add {own} peer {peer} dev tun0\n"))
                .unwrap();
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
    check(
        lab,
        &[
            Row::new("pods", (&near, near.address()), (&far, far.address())).takes(&ways),
            Row::new("pods, the other way", (&far, far.address()), (&near, near.address())).takes(&ways),
            Row::new("a node to a pod", (one, one.address()), (&far, far.address())),
            Row::new("a pod to a node", (&near, near.address()), (two, two.address())),
            Row::new("nodes", (one, one.address()), (two, two.address())),
        ],
    );
}

#[test]
fn pods_reach_the_world_and_are_reached_by_tun() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let (lab, world, _cable) = world_by_tun(mode);
        let node = lab.node(0);
        let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let pod = node.add_pod_with("pod", &mapping).unwrap();
        let ways = [(0, SnatOut), (0, SnatIn)];
        check(
            &lab,
            &[
                Row::new("a pod to the world", (&pod, pod.address()), (&world, WORLD))
                    .seen_as(HERE)
                    .takes(&ways),
                Row::new("the node to the world", (node, HERE), (&world, WORLD)),
            ],
        );
        // These connections go past the host's rules from the first packet on.
        for _ in 0..4 {
            traffic::tcp_exchange(&pod, &world, WORLD, 8443, 1 << 20).unwrap();
        }
        let before = Counted::quiet(&lab);
        let route = traffic::Route::translated((HERE, 8080).into(), 80);
        let exchange = traffic::tcp_exchange_on(&world, &pod, route, 1 << 20).unwrap();
        assert_eq!(exchange.peer_seen_by_server.ip(), WORLD, "{mode:?}");
        Counted::quiet(&lab).since(&before).expect(&[(0, HostPortIn), (0, HostPortOut)], &[]).unwrap();
    }
}

#[test]
fn an_error_of_the_world_reaches_the_pod_by_tun() {
    let (lab, world, _cable) = world_by_tun(Mode::Vxlan);
    let pod = lab.node(0).add_pod("pod").unwrap();
    // No socket listens there: the world answers "port unreachable" about the translated packet.
    let refused = crate::sockets::udp(&pod, ("0.0.0.0", 0));
    refused.connect((WORLD, 9)).unwrap();
    refused.send(b"?").unwrap();
    let error = refused.recv(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    // The pod also learns of a path with a smaller MTU.
    world.ip("link set dev tun0 mtu 1200\n").unwrap();
    lab.node(0).ip("link set dev tun0 mtu 1200\n").unwrap();
    traffic::tcp_exchange(&pod, &world, WORLD, 8080, 1 << 20).unwrap();
}

/// The host stack routes a pod's packet for a service to the other node. The packet must not leave
/// bare: the program puts it into the tunnel, on a link without link header too.
#[test]
fn what_the_stack_sends_by_tun_is_encapsulated() {
    let (lab, _cable) = nodes_by_tun();
    let [one, two] = [lab.node(0), lab.node(1)];
    let near = one.add_pod("near").unwrap();
    let service: IpAddr = [10, 96, 0, 9].into();
    let backend = two.address();
    let rule = format!(
        "-t nat -A PREROUTING -d {service} -p tcp --dport 80 -j DNAT --to-destination {backend}:6443"
    );
    crate::service::iptables(one, &rule);
    let before = Counted::quiet(&lab);
    let route = traffic::Route::translated((service, 80).into(), 6443);
    let exchange = traffic::tcp_exchange_on(&near, two, route, 1 << 20).unwrap();
    assert_eq!(exchange.peer_seen_by_server.ip(), near.address());
    let ways = [(0, StackEncapsulated), (1, TunnelToStack)];
    Counted::quiet(&lab).since(&before).expect(&ways, &[]).unwrap();
}

/// Returns nodes with routes to each other by a tun device.
fn nodes_by_tun() -> (Lab, TunCable) {
    let lab = Lab::builder().agents(false).build().unwrap();
    let [one, two] = [lab.node(0), lab.node(1)];
    let cable = TunCable::connect(one, two, "tun0").unwrap();
    for (node, other) in [(one, two), (two, one)] {
        let (own, peer) = (node.address(), other.address());
        node.ip(&format!("route add {peer} dev tun0 src {own}\n")).unwrap();
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
    node.ip(&format!("address add {HERE}/32 dev tun0\nroute replace default dev tun0\n")).unwrap();
    world.ip(&format!("address add {WORLD}/32 dev tun0\nroute add default dev tun0\n")).unwrap();
    node.start_agent().unwrap();
    (lab, world, cable)
}
