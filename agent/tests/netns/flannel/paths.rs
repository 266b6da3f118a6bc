//! Every path between the two kinds of nodes, checked at both ends.

use std::net::{IpAddr, SocketAddr};

use podwire_common::reason::Path::{
    HostPortOut, StackEncapsulated, StackToTunnel, ToStack, TooBigAnswered, TunnelIn, TunnelInDevice,
    TunnelOut, TunnelOutDevice,
};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{Lab, Mode, traffic};

use super::{HOST_PORT, OLD_MACS, PORT, Scene, announce, answers, ask_host_port, macs, reach_node};
use crate::check::{Counted, Counter, Row, check};
use crate::service::iptables_of;
use crate::sockets::wait_until;

const MEBIBYTE: u64 = 1 << 20;
/// The paths of pods' packets between the two nodes, by family (0: IPv4). IPv6 travels in IPv6, and
/// the kernel's device writes the outer UDP checksum, which flannel's device requires.
const DIRECT: [[Counter; 2]; 2] = [[(0, TunnelOut), (0, TunnelIn)], [(0, TunnelOutDevice), (0, TunnelIn)]];
/// The MTU of these paths.
const MTU: [usize; 2] = [1450, 1430];
/// The size of the headers of an echo request.
const ECHO_HEADERS: [usize; 2] = [20 + 8, 40 + 8];

#[test]
fn flannels_and_our_pods_and_nodes_reach_each_other() {
    let scene = Scene::new(Lab::builder());
    let (ours, flannels) = (scene.ours(), scene.flannels());
    for (family, direct) in DIRECT.iter().enumerate() {
        let (pod, far) = (scene.pod(family), scene.far(family));
        let overlay = (&**ours, ours.overlay_addresses()[family]);
        let device = (&**flannels, scene.flannels_devices()[family]);
        let [our_node, flannels_node] = [ours, flannels].map(|node| (&**node, node.addresses()[family]));
        check(
            &scene.lab,
            &[
                Row::new("our pod to flannel's", pod, far).takes(direct),
                Row::new("flannel's pod to ours", far, pod).takes(direct),
                // With our node's own address as the source, the answers would not come through the
                // tunnel.
                Row::new("our node to flannel's pod", overlay, far).takes(&[(0, StackToTunnel)]),
                Row::new("flannel's node to our pod", device, pod).takes(direct),
                Row::new("our pod to flannel's device", pod, device).takes(direct),
                Row::new("flannel's pod to our overlay address", far, overlay),
                Row::new("our node to flannel's node", our_node, flannels_node),
            ],
        );
        let before = Counted::quiet(&scene.lab);
        reach_node(&scene.pod, pod.1, flannels).unwrap();
        Counted::quiet(&scene.lab).since(&before).expect(direct, &[]).unwrap();
        // Flannel masquerades packets that leave the pod network. This is the last row, because our
        // node also applies the MTU that it learns to tunnel packets.
        let row = Row::new("flannel's pod to our node", far, our_node).seen_as(flannels_node.1);
        check(&scene.lab, &[learns_mtu(family, row)]);
    }
}

/// Marks a row in which a link in the middle takes less than those of both ends, so that in IPv6 an
/// end learns it from an error: flannel's pods have the same MTU for both families, but its IPv6
/// device takes 20 bytes less.
fn learns_mtu(family: usize, row: Row<'_>) -> Row<'_> {
    if family == 0 { row } else { row.learns_mtu() }
}

#[test]
fn large_segments_and_datagrams_cross_between_the_two_kinds() {
    let scene = Scene::new(Lab::builder());
    for (family, direct) in DIRECT.iter().enumerate() {
        let (pod, far) = (scene.pod(family), scene.far(family));
        for (from, to) in [(pod, far), (far, pod)] {
            let before = Counted::quiet(&scene.lab);
            traffic::tcp_exchange(from.0, to.0, to.1, PORT, 256 * MEBIBYTE).unwrap();
            let grown = Counted::quiet(&scene.lab).since(&before);
            grown.expect(direct, &[]).unwrap();
            let whole = 256 * MEBIBYTE / MTU[family] as u64;
            let packets = direct.iter().map(|counter| grown.packets(*counter)).max().unwrap();
            assert!(packets < whole / 4, "a stream keeps its large segments on the way: {grown}");
            traffic::udp_segments(from.0, to.0, to.1, PORT, 1200, 40).unwrap();
        }
    }
}

#[test]
fn packets_larger_than_the_tunnel_are_cut_or_refused() {
    let scene = Scene::new(Lab::builder().agent_arguments(&["--mtu", "9000"]));
    // The VXLAN device encapsulates packets that were decapsulated here before. It also
    // encapsulates packets that are too large and may be cut, like this one. In IPv6 no packet may
    // be cut on its way.
    let before = Counted::quiet(&scene.lab);
    scene
        .pod
        .exec(&["ping", "-n", "-c1", "-W5", "-M", "dont", "-s", "4000", &scene.far(0).1.to_string()])
        .unwrap();
    let grown = Counted::quiet(&scene.lab).since(&before);
    grown.expect(&[(0, TunnelOutDevice)], &[]).unwrap();
    for (family, mtu) in MTU.into_iter().enumerate() {
        let (far, largest) = (scene.far(family).1, mtu - ECHO_HEADERS[family]);
        let refused = traffic::ping_unfragmented(&scene.pod, far, largest + 1).unwrap_err().to_string();
        assert!(refused.replace(' ', "").contains(&format!("mtu={mtu}")), "{refused}");
        traffic::ping_unfragmented(&scene.pod, far, largest).unwrap();
    }
}

#[test]
fn connections_live_when_the_path_to_flannels_nodes_shrinks() {
    let scene = Scene::new(Lab::builder().router(true));
    let ways = [0, 1].into_iter().flat_map(|family| {
        let (pod, far) = (scene.pod(family), scene.far(family));
        [(pod, far), (far, pod)]
    });
    let streams = ways
        .zip(PORT..)
        .map(|((from, to), port)| (from.1, traffic::tcp_stream(from.0, to.0, to.1, port).unwrap()));
    let streams: Vec<_> = streams.collect();
    let go_on = |bytes| {
        for (from, stream) in &streams {
            stream.wait_for(bytes).unwrap_or_else(|error| panic!("from {from}: {error:#}"));
        }
    };
    go_on(MEBIBYTE);
    let before = Counted::now(&scene.lab);
    scene.lab.set_path_mtu(0, 1400).unwrap();
    scene.lab.set_path_mtu(1, 1400).unwrap();
    go_on(8 * MEBIBYTE);
    for (from, stream) in streams {
        assert_eq!(stream.finish().unwrap().peer_seen_by_server.ip(), from);
    }
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
    let replied = [(0, HostPortOut), (0, TunnelOutDevice)];
    for family in [0, 1] {
        let (pod, far) = (scene.pod(family), scene.far(family));
        let [our_address, flannels_address] = [ours, flannels].map(|node| node.addresses()[family]);
        let asked = ask_host_port(far.0, pod.0, our_address).unwrap();
        assert_eq!(asked, seen(flannels_address), "flannel masquerades what leaves the pod network");
        assert_eq!(ask_host_port(flannels, pod.0, our_address).unwrap(), seen(flannels_address));
        // The client uses the address that the node has among its pods: request and reply are in
        // the tunnel.
        let before = Counted::quiet(&scene.lab);
        let asked = ask_host_port(far.0, pod.0, ours.overlay_addresses()[family]).unwrap();
        assert_eq!(asked, seen(far.1));
        Counted::quiet(&scene.lab).since(&before).expect(&[replied[family]], &[]).unwrap();
        assert_eq!(ask_host_port(pod.0, far.0, flannels_address).unwrap(), seen(pod.1));
        if family == 1 {
            // Our node learns from the loss that the pod's link takes less than the nodes' links.
            let route = traffic::Route::translated(SocketAddr::new(flannels_address, HOST_PORT), PORT);
            traffic::udp_exchange_on(ours, far.0, route, 4000).unwrap_err();
        }
        assert_eq!(ask_host_port(ours, far.0, flannels_address).unwrap(), seen(our_address));
    }
}

#[test]
fn a_service_on_our_node_has_backends_on_flannels() {
    let scene = Scene::new(Lab::builder());
    let to_node = [StackEncapsulated, TunnelOutDevice];
    for (family, service) in ["10.96.0.21", "fd00:10:96::21"].into_iter().enumerate() {
        let service = SocketAddr::new(service.parse().unwrap(), 80);
        let flannels = scene.flannels();
        for ((server, backend), takes) in [
            (scene.far(family), StackToTunnel),
            ((&**flannels, flannels.addresses()[family]), to_node[family]),
        ] {
            let backend = SocketAddr::new(backend, PORT);
            let rule = |verb: &str| {
                for protocol in ["tcp", "udp"] {
                    let rule = format!(
                        "-t nat {verb} PREROUTING -d {} -p {protocol} --dport 80 -j DNAT --to-destination {backend}",
                        service.ip()
                    );
                    iptables_of(service.ip(), scene.ours(), &rule);
                }
            };
            rule("-A");
            let before = Counted::quiet(&scene.lab);
            let route = traffic::Route::translated(service, PORT);
            for _ in 0..2 {
                let exchange = traffic::tcp_exchange_on(&scene.pod, server, route, MEBIBYTE).unwrap();
                assert_eq!(exchange.peer_seen_by_server, exchange.client);
                let route = traffic::Route { listen: backend, ..route };
                traffic::udp_exchange_on(&scene.pod, server, route, 4000).unwrap();
            }
            Counted::quiet(&scene.lab).since(&before).expect(&[(0, ToStack), (0, takes)], &[]).unwrap();
            rule("-D");
        }
    }
}

#[test]
fn flannels_host_gw_and_direct_routing_reach_each_other() {
    let lab = Lab::builder().mode(Mode::Direct).agents(false).build().unwrap();
    let (ours, flannels) = (lab.node(0), lab.node(1));
    reference::set_up_node(flannels, Join::Routes, Masquerade::Iptables).unwrap();
    reference::add_routes(flannels, ours).unwrap();
    // Flannel has left these routes on our node.
    reference::add_routes(ours, flannels).unwrap();
    ours.start_agent().unwrap();
    let none = serde_json::json!({});
    let (pod, far) =
        (ours.add_pod("pod").unwrap(), super::add_pod(flannels, "far", Join::Routes, &none).unwrap());
    for family in [0, 1] {
        let (pod, far) = ((&*pod, pod.addresses()[family]), (&*far, far.addresses[family]));
        let [ours, flannels] = [ours, flannels].map(|node| (&**node, node.addresses()[family]));
        check(
            &lab,
            &[
                Row::new("our pod to flannel's", pod, far),
                Row::new("flannel's pod to ours", far, pod),
                Row::new("our node to flannel's pod", ours, far),
                Row::new("flannel's node to our pod", flannels, pod),
                Row::new("our pod to flannel's node", pod, flannels),
                Row::new("flannel's pod to our node", far, ours).seen_as(flannels.1),
            ],
        );
    }
}

#[test]
fn flannel_node_hears_only_a_node_with_its_annotation() {
    let scene = Scene::new(Lab::builder());
    let all_answer = |answer| {
        [0, 1].into_iter().all(|family| answers(&scene.pod, scene.far(family).1) == answer).then_some(())
    };
    assert!(all_answer(true).is_some());
    announce(&scene.lab, [Some(OLD_MACS), None]).unwrap();
    let lost = wait_until(|| all_answer(false));
    assert!(lost.is_some(), "flannel's device takes any frame, so this test shows nothing");
    announce(&scene.lab, [Some(OLD_MACS), Some(macs(scene.flannels()))]).unwrap();
    let back = wait_until(|| all_answer(true));
    assert!(back.is_some(), "{}", scene.ours().agent_log_tail(20));
}
