//! Pods that forward packets. A node sends on the packets that it has decapsulated for such a pod,
//! large segments included.

use std::net::{IpAddr, Ipv4Addr};

use podwire_common::reason::Path::{TunnelIn, TunnelInDevice, TunnelOut, TunnelOutDevice};
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Node, Pod, connect, traffic};

use crate::check::{Counted, Row, check};
use crate::service::iptables;

const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 7, 2));
const STREAM: u64 = 16 << 20;

#[test]
fn a_pod_forwards_to_and_from_a_namespace_behind_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let gateway = forwarding_pod(lab.node(0));
        let behind = lab.add_namespace("behind").unwrap();
        connect(&gateway, "inside", &behind, "eth0").unwrap();
        gateway.ip("address add 192.168.7.1/24 dev inside").unwrap();
        behind.ip("address add 192.168.7.2/24 dev eth0\nroute add default via 192.168.7.1").unwrap();
        if mode == Mode::Vxlan {
            // The same MTU as the pod's: no packet is too large here. `snat/errors.rs` tests that
            // the world learns of a smaller one.
            gateway.ip("link set inside mtu 1450").unwrap();
            behind.ip("link set eth0 mtu 1450").unwrap();
        }
        iptables(&gateway, "-t nat -A PREROUTING -i eth0 -j DNAT --to-destination 192.168.7.2");
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());

        let capture = Capture::start(&behind, "eth0").unwrap();
        check(
            &lab,
            &[
                Row::new("pod of the other node, inwards", (&far, far.address()), (&behind, BEHIND))
                    .by_way_of(gateway.address()),
                Row::new("namespace to pod of the other node", (&behind, BEHIND), (&far, far.address()))
                    .seen_as(gateway.address()),
                Row::new("pod of the same node, inwards", (&near, near.address()), (&behind, BEHIND))
                    .by_way_of(gateway.address()),
                Row::new("namespace to pod of the same node", (&behind, BEHIND), (&near, near.address()))
                    .seen_as(gateway.address()),
                Row::new("namespace to the world", (&behind, BEHIND), (lab.world(), lab.world_address()))
                    .seen_as(lab.node(0).address()),
            ],
        );
        assert_large_segments(&capture.finish().unwrap());
    }
}

#[test]
fn a_pod_forwards_to_a_pod_of_another_node() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let gateway = forwarding_pod(lab.node(0));
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let other = lab.node(1).add_pod("other").unwrap();
        let backend = |address| {
            iptables(&gateway, &format!("-t nat -A PREROUTING -i eth0 -j DNAT --to-destination {address}"))
        };
        backend(far.address());
        check(
            &lab,
            &[
                Row::new(
                    "from the other node and back to it",
                    (&other, other.address()),
                    (&far, far.address()),
                )
                .by_way_of(gateway.address())
                .seen_as(gateway.address()),
                Row::new("from the same node to the other", (&near, near.address()), (&far, far.address()))
                    .by_way_of(gateway.address())
                    .seen_as(gateway.address()),
            ],
        );
        iptables(&gateway, "-t nat -F PREROUTING");
        backend(near.address());
        check(
            &lab,
            &[Row::new(
                "from the other node to the same",
                (&other, other.address()),
                (&near, near.address()),
            )
            .by_way_of(gateway.address())
            .seen_as(gateway.address())],
        );
    }
}

#[test]
fn two_pods_run_a_vxlan_of_their_own() {
    let lab = Lab::builder().build().unwrap();
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    // IANA's port, and the port that the nodes use for their own tunnel.
    for (number, port) in [(1, 4789), (2, 8472)] {
        let before = Counted::quiet(&lab);
        let device = |pod: &Pod, remote: &Pod, host: u8| {
            let (local, remote) = (pod.address(), remote.address());
            pod.ip(&format!(
                "link add own{number} type vxlan id 42 local {local} remote {remote} dstport {port} dev eth0\n\
                 link set own{number} up\naddress add 172.30.{number}.{host}/24 dev own{number}\n"
            ))
            .unwrap();
        };
        device(&client, &server, 1);
        device(&server, &client, 2);
        let address = |host| IpAddr::V4(Ipv4Addr::new(172, 30, number, host));
        let inside = traffic::tcp_exchange(&client, &server, address(2), 8080, STREAM);
        inside.unwrap_or_else(|error| {
            panic!("port {port}: {error:#}; {}", Counted::quiet(&lab).since(&before))
        });
        check(
            &lab,
            &[
                Row::new("inside the pods' own VXLAN", (&client, address(1)), (&server, address(2))),
                Row::new("inside the pods' own VXLAN, back", (&server, address(2)), (&client, address(1))),
            ],
        );
    }
}

#[test]
fn udp_segments_of_one_call_arrive_as_so_many_datagrams() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let client = lab.node(0).add_pod("client").unwrap();
        let near = lab.node(0).add_pod("near").unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        for (server, address) in [
            (&*near, near.address()),
            (&*far, far.address()),
            (&**lab.node(0), lab.node(0).address()),
            (&**lab.node(1), lab.node(1).address()),
            (lab.world(), lab.world_address()),
        ] {
            let before = Counted::quiet(&lab);
            // QUIC's datagram size, and a size that fills a pod's frames.
            for size in [1200, 1400] {
                let exchange = traffic::udp_segments(&client, server, address, 8080, size, 40);
                exchange.unwrap_or_else(|error| {
                    panic!("{mode:?}, {size}: {error:#}; {}", Counted::quiet(&lab).since(&before))
                });
            }
            Counted::quiet(&lab).since(&before).expect(&[], &[]).unwrap();
        }
        if mode == Mode::Vxlan {
            let before = Counted::quiet(&lab);
            traffic::udp_segments(&client, &far, far.address(), 8080, 1200, 40).unwrap();
            let grown = Counted::quiet(&lab).since(&before);
            let out = grown.packets((0, TunnelOut)) + grown.packets((0, TunnelOutDevice));
            let into = grown.packets((1, TunnelIn)) + grown.packets((1, TunnelInDevice));
            assert!(out > 0 && into > 0, "{grown}");
        }
    }
}

/// Returns a pod that forwards everything with its own address as the source.
fn forwarding_pod(node: &Node) -> Pod {
    let pod = node.add_pod("gateway").unwrap();
    pod.sysctl("net/ipv4/ip_forward", "1").unwrap();
    iptables(&pod, "-t nat -A POSTROUTING -o eth0 -j MASQUERADE");
    pod
}

/// Asserts that segments stay whole from end to end: some frame is larger than any link's MTU.
fn assert_large_segments(frames: &[Vec<u8>]) {
    let largest = frames.iter().map(Vec::len).max();
    assert!(largest > Some(9000), "the largest frame had {largest:?} bytes");
}
