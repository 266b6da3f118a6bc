//! Every path between the two kinds of nodes, checked at both ends.

use std::net::{IpAddr, SocketAddr};

use podwire_common::reason::Path::{
    HostPortOut, StackEncapsulated, StackToTunnel, ToStack, TooBigAnswered, TunnelIn, TunnelInDevice,
    TunnelOut, TunnelOutDevice,
};
use xtask::lab::reference::{self, Join, Masquerade, VXLAN};
use xtask::lab::{Lab, Mode, traffic};

use super::{OLD_MAC, PORT, Scene, announce, answers, ask_host_port, reach_node};
use crate::check::{Counted, Row, check};
use crate::service::iptables;
use crate::sockets::wait_until;

const MEBIBYTE: u64 = 1 << 20;

#[test]
fn flannels_and_our_pods_and_nodes_reach_each_other() {
    let scene = Scene::new(Lab::builder());
    let (ours, flannels) = (scene.ours(), scene.flannels());
    let (pod, far) = ((&*scene.pod, scene.pod.address()), (&*scene.far, scene.far.address));
    let direct: &[_] = &[(0, TunnelOut), (0, TunnelIn)];
    check(
        &scene.lab,
        &[
            Row::new("our pod to flannel's", pod, far).takes(direct),
            Row::new("flannel's pod to ours", far, pod).takes(direct),
            // With our node's own address as the source, the answers would not come through the
            // tunnel.
            Row::new("our node to flannel's pod", (ours, ours.gateway()), far).takes(&[(0, StackToTunnel)]),
            Row::new("flannel's node to our pod", (flannels, scene.flannels_device()), pod).takes(direct),
            Row::new("our pod to flannel's device", pod, (flannels, scene.flannels_device())).takes(direct),
            // Flannel masquerades packets that leave the pod network.
            Row::new("flannel's pod to our node", far, (ours, ours.address())).seen_as(flannels.address()),
            Row::new("flannel's pod to our overlay address", far, (ours, ours.gateway())),
            Row::new("our node to flannel's node", (ours, ours.address()), (flannels, flannels.address())),
        ],
    );
    let before = Counted::quiet(&scene.lab);
    reach_node(&scene.pod, scene.pod.address(), flannels).unwrap();
    Counted::quiet(&scene.lab).since(&before).expect(direct, &[]).unwrap();
}

#[test]
fn large_segments_and_datagrams_cross_between_the_two_kinds() {
    let scene = Scene::new(Lab::builder());
    let (pod, far) = ((&*scene.pod, scene.pod.address()), (&*scene.far, scene.far.address));
    for (from, to) in [(pod, far), (far, pod)] {
        let before = Counted::quiet(&scene.lab);
        traffic::tcp_exchange(from.0, to.0, to.1, PORT, 256 * MEBIBYTE).unwrap();
        let grown = Counted::quiet(&scene.lab).since(&before);
        grown.expect(&[(0, TunnelOut), (0, TunnelIn)], &[]).unwrap();
        let whole = 256 * MEBIBYTE / 1398;
        let packets = grown.packets((0, TunnelOut)).max(grown.packets((0, TunnelIn)));
        assert!(packets < whole / 4, "a stream keeps its large segments on the way: {grown}");
        traffic::udp_segments(from.0, to.0, to.1, PORT, 1200, 40).unwrap();
    }
}

#[test]
fn packets_larger_than_the_tunnel_are_cut_or_refused() {
    let scene = Scene::new(Lab::builder().agent_arguments(&["--mtu", "9000"]));
    // The VXLAN device encapsulates packets that were decapsulated here before. It also
    // encapsulates packets that are too large and may be cut, like this one.
    let before = Counted::quiet(&scene.lab);
    scene
        .pod
        .exec(&["ping", "-n", "-c1", "-W5", "-M", "dont", "-s", "4000", &scene.far.address.to_string()])
        .unwrap();
    let grown = Counted::quiet(&scene.lab).since(&before);
    grown.expect(&[(0, TunnelOutDevice)], &[]).unwrap();
    let refused =
        traffic::ping_unfragmented(&scene.pod, scene.far.address, 1450 - 28 + 1).unwrap_err().to_string();
    assert!(refused.contains("mtu = 1450"), "{refused}");
    traffic::ping_unfragmented(&scene.pod, scene.far.address, 1450 - 28).unwrap();
}

#[test]
fn connections_live_when_the_path_to_flannels_nodes_shrinks() {
    let scene = Scene::new(Lab::builder().router(true));
    let down = traffic::tcp_stream(&scene.pod, &scene.far, scene.far.address, PORT).unwrap();
    let up = traffic::tcp_stream(&scene.far, &scene.pod, scene.pod.address(), PORT).unwrap();
    down.wait_for(MEBIBYTE).unwrap();
    up.wait_for(MEBIBYTE).unwrap();
    let before = Counted::now(&scene.lab);
    scene.lab.set_path_mtu(0, 1280).unwrap();
    scene.lab.set_path_mtu(1, 1280).unwrap();
    down.wait_for(8 * MEBIBYTE).unwrap();
    up.wait_for(8 * MEBIBYTE).unwrap();
    assert_eq!(down.finish().unwrap().peer_seen_by_server.ip(), scene.pod.address());
    assert_eq!(up.finish().unwrap().peer_seen_by_server.ip(), scene.far.address);
    // Flannel's device lets routers cut its packets. The kernel reassembles the outer fragments for
    // our device.
    let grown = Counted::quiet(&scene.lab).since(&before);
    grown.expect(&[(0, TooBigAnswered), (0, TunnelInDevice)], &[]).unwrap();
}

#[test]
fn host_ports_of_either_kind_answer_clients_of_the_other() {
    let scene = Scene::new(Lab::builder());
    let (ours, flannels) = (scene.ours(), scene.flannels());
    let seen = |address: IpAddr| [address; 2];
    let asked = ask_host_port(&scene.far, &scene.pod, ours.address()).unwrap();
    assert_eq!(asked, seen(flannels.address()), "flannel masquerades what leaves the pod network");
    assert_eq!(ask_host_port(flannels, &scene.pod, ours.address()).unwrap(), seen(flannels.address()));
    // The client uses the address that the node has among its pods: request and reply are in the
    // tunnel.
    let before = Counted::quiet(&scene.lab);
    let asked = ask_host_port(&scene.far, &scene.pod, ours.gateway()).unwrap();
    assert_eq!(asked, seen(scene.far.address));
    Counted::quiet(&scene.lab).since(&before).expect(&[(0, HostPortOut)], &[]).unwrap();
    assert_eq!(ask_host_port(&scene.pod, &scene.far, flannels.address()).unwrap(), seen(scene.pod.address()));
    assert_eq!(ask_host_port(ours, &scene.far, flannels.address()).unwrap(), seen(ours.address()));
}

#[test]
fn a_service_on_our_node_has_backends_on_flannels() {
    let scene = Scene::new(Lab::builder());
    let service = SocketAddr::new("10.96.0.21".parse().unwrap(), 80);
    for (backend, server, takes) in [
        (scene.far.address, &*scene.far, StackToTunnel),
        (scene.flannels().address(), &**scene.flannels(), StackEncapsulated),
    ] {
        let rule = |verb: &str| {
            for protocol in ["tcp", "udp"] {
                let rule = format!(
                    "-t nat {verb} PREROUTING -d 10.96.0.21/32 -p {protocol} --dport 80 -j DNAT --to-destination {backend}:{PORT}"
                );
                iptables(scene.ours(), &rule);
            }
        };
        rule("-A");
        let before = Counted::quiet(&scene.lab);
        let route = traffic::Route::translated(service, PORT);
        for _ in 0..2 {
            let exchange = traffic::tcp_exchange_on(&scene.pod, server, route, MEBIBYTE).unwrap();
            assert_eq!(exchange.peer_seen_by_server, exchange.client);
            let route = traffic::Route { listen: SocketAddr::new(backend, PORT), ..route };
            traffic::udp_exchange_on(&scene.pod, server, route, 4000).unwrap();
        }
        Counted::quiet(&scene.lab).since(&before).expect(&[(0, ToStack), (0, takes)], &[]).unwrap();
        rule("-D");
    }
}

#[test]
fn flannels_host_gw_and_direct_routing_reach_each_other() {
    let lab = Lab::builder().mode(Mode::Direct).agents(false).build().unwrap();
    let (ours, flannels) = (lab.node(0), lab.node(1));
    reference::set_up_node(flannels, Join::Routes, Masquerade::Iptables).unwrap();
    flannels.ip(&format!("route add {} via {}\n", ours.pod_cidr(), ours.address())).unwrap();
    // Flannel has left this route on our node.
    ours.ip(&format!("route add {} via {}\n", flannels.pod_cidr(), flannels.address())).unwrap();
    ours.start_agent().unwrap();
    let none = serde_json::json!({});
    let (pod, far) = (ours.add_pod("pod").unwrap(), super::add_pod(flannels, "far", &none).unwrap());
    let (pod, far) = ((&*pod, pod.address()), (&*far, far.address));
    check(
        &lab,
        &[
            Row::new("our pod to flannel's", pod, far),
            Row::new("flannel's pod to ours", far, pod),
            Row::new("our node to flannel's pod", (ours, ours.address()), far),
            Row::new("flannel's node to our pod", (flannels, flannels.address()), pod),
            Row::new("our pod to flannel's node", pod, (flannels, flannels.address())),
            Row::new("flannel's pod to our node", far, (ours, ours.address())).seen_as(flannels.address()),
        ],
    );
}

#[test]
fn flannel_node_hears_only_a_node_with_its_annotation() {
    let scene = Scene::new(Lab::builder());
    assert!(answers(&scene.pod, scene.far.address));
    announce(&scene.lab, [Some(OLD_MAC), None]).unwrap();
    let lost = wait_until(|| (!answers(&scene.pod, scene.far.address)).then_some(()));
    assert!(lost.is_some(), "flannel's device takes any frame, so this test shows nothing");
    announce(&scene.lab, [Some(OLD_MAC), Some(scene.flannels().mac(VXLAN).unwrap())]).unwrap();
    let back = wait_until(|| answers(&scene.pod, scene.far.address).then_some(()));
    assert!(back.is_some(), "{}", scene.ours().agent_log_tail(20));
}
