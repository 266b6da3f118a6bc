//! Pods that forward packets. A node sends on the packets that it has decapsulated for such a pod,
//! large segments included.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use podwire_common::reason::Path::{TunnelIn, TunnelInDevice, TunnelOut, TunnelOutDevice};
use xtask::lab::frames::Capture;
use xtask::lab::{Lab, Mode, Node, Pod, connect, traffic};

use crate::check::{Counted, Row, check};
use crate::{FAMILIES, Place as _, ip_tables, world_end};

/// The forwarding pod's address in the network behind it, and the address of the namespace there.
pub const INSIDE: [IpAddr; 2] = network(1);
pub const BEHIND: [IpAddr; 2] = network(2);
const STREAM: u64 = 16 << 20;
const IN_IPV6: &[&str] = &["--tunnel-family", "ipv6"];
/// How packets travel between nodes, with the agents' arguments for it.
const WAYS: [(Mode, &[&str]); 3] = [(Mode::Vxlan, &[]), (Mode::Vxlan, IN_IPV6), (Mode::Direct, &[])];

#[test]
fn a_pod_forwards_to_and_from_a_namespace_behind_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).build().unwrap();
        let gateway = forwarding_pod(lab.node(0));
        let behind = lab.add_namespace("behind").unwrap();
        connect(&gateway, "inside", &behind, "eth0").unwrap();
        for (inside, address) in INSIDE.into_iter().zip(BEHIND) {
            let length = if inside.is_ipv4() { 24 } else { 64 };
            gateway.add_address("inside", inside, length).unwrap();
            behind.add_address("eth0", address, length).unwrap();
            behind.ip(&format!("route add default via {inside}\n")).unwrap();
        }
        if mode == Mode::Vxlan {
            // The same MTU as the pod's: no packet is too large here. `snat/errors.rs` tests that
            // the world learns of a smaller one.
            gateway.ip("link set inside mtu 1450").unwrap();
            behind.ip("link set eth0 mtu 1450").unwrap();
        }
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        for family in FAMILIES {
            forward_to(&gateway, family, BEHIND[family]);
            let capture = Capture::start(&behind, "eth0").unwrap();
            let (near, far, behind) = (near.end(family), far.end(family), (&behind, BEHIND[family]));
            let (gateway, world) = (gateway.end(family).1, world_end(&lab, family));
            let to_world =
                Row::new("namespace to the world", behind, world).seen_as(lab.node(0).end(family).1);
            check(
                &lab,
                &[
                    Row::new("pod of the other node, inwards", far, behind).by_way_of(gateway),
                    Row::new("namespace to pod of the other node", behind, far).seen_as(gateway),
                    Row::new("pod of the same node, inwards", near, behind).by_way_of(gateway),
                    Row::new("namespace to pod of the same node", behind, near).seen_as(gateway),
                    Row { learns_mtu: mode == Mode::Vxlan, ..to_world },
                ],
            );
            assert_large_segments(&capture.finish().unwrap());
        }
    }
}

#[test]
fn a_pod_forwards_to_a_pod_of_another_node() {
    for (mode, arguments) in WAYS {
        let lab = Lab::builder().mode(mode).agent_arguments(arguments).build().unwrap();
        let gateway = forwarding_pod(lab.node(0));
        let (near, far) = (lab.node(0).add_pod("near").unwrap(), lab.node(1).add_pod("far").unwrap());
        let other = lab.node(1).add_pod("other").unwrap();
        for family in FAMILIES {
            let (near, far, other) = (near.end(family), far.end(family), other.end(family));
            let by_gateway = |name, client, server| {
                let gateway = gateway.end(family).1;
                Row::new(name, client, server).by_way_of(gateway).seen_as(gateway)
            };
            forward_to(&gateway, family, far.1);
            let rows = [
                by_gateway("from the other node and back to it", other, far),
                by_gateway("from the same node to the other", near, far),
            ];
            check(&lab, &rows);
            forward_to(&gateway, family, near.1);
            check(&lab, &[by_gateway("from the other node to the same", other, near)]);
        }
    }
}

#[test]
fn two_pods_run_a_vxlan_of_their_own() {
    let lab = Lab::builder().build().unwrap();
    let (client, server) = (lab.node(0).add_pod("client").unwrap(), lab.node(1).add_pod("server").unwrap());
    // IANA's port, and the port that the nodes use for their own tunnel.
    for (number, (outer, port)) in [(0, 4789), (0, 8472), (1, 4789), (1, 8472)].into_iter().enumerate() {
        let before = Counted::quiet(&lab);
        let address = |host: u8| {
            let number = number as u8;
            [
                IpAddr::V4(Ipv4Addr::new(172, 30, number, host)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x172, 0x30, number.into(), 0, 0, 0, host.into())),
            ]
        };
        let device = |pod: &Pod, remote: &Pod, host: u8| {
            let (local, remote) = (pod.end(outer).1, remote.end(outer).1);
            pod.ip(&format!(
                "link add own{number} type vxlan id 42 local {local} remote {remote} dstport {port} dev eth0\n\
                 link set own{number} up\n"
            ))
            .unwrap();
            for (address, length) in address(host).into_iter().zip([24, 64]) {
                pod.add_address(&format!("own{number}"), address, length).unwrap();
            }
        };
        device(&client, &server, 1);
        device(&server, &client, 2);
        for (one, two) in address(1).into_iter().zip(address(2)) {
            let inside = traffic::tcp_exchange(&client, &server, two, 8080, STREAM);
            inside.unwrap_or_else(|error| {
                panic!("port {port} to {two}: {error:#}; {}", Counted::quiet(&lab).since(&before))
            });
            check(
                &lab,
                &[
                    Row::new("inside the pods' own VXLAN", (&client, one), (&server, two)),
                    Row::new("inside the pods' own VXLAN, back", (&server, two), (&client, one)),
                ],
            );
        }
        for pod in [&client, &server] {
            pod.ip(&format!("link delete own{number}\n")).unwrap();
        }
    }
}

#[test]
fn udp_segments_of_one_call_arrive_as_so_many_datagrams() {
    for (mode, arguments) in WAYS {
        let lab = Lab::builder().mode(mode).agent_arguments(arguments).build().unwrap();
        // QUIC's datagram size, and a size that fills a pod's frames.
        let sizes = if arguments == IN_IPV6 { [1200, 1380] } else { [1200, 1400] };
        let client = lab.node(0).add_pod("client").unwrap();
        let near = lab.node(0).add_pod("near").unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        for family in FAMILIES {
            let [node, other] = [0, 1].map(|node| lab.node(node).end(family));
            for (server, address) in [near.end(family), far.end(family), node, other, world_end(&lab, family)]
            {
                let before = Counted::quiet(&lab);
                for size in sizes {
                    let exchange = traffic::udp_segments(&client, server, address, 8080, size, 40);
                    exchange.unwrap_or_else(|error| {
                        let grown = Counted::quiet(&lab).since(&before);
                        panic!("{mode:?} {arguments:?}, {size} to {address}: {error:#}; {grown}")
                    });
                }
                Counted::quiet(&lab).since(&before).expect(&[], &[]).unwrap();
            }
            if mode == Mode::Vxlan {
                let before = Counted::quiet(&lab);
                traffic::udp_segments(&client, &far, far.end(family).1, 8080, 1200, 40).unwrap();
                let grown = Counted::quiet(&lab).since(&before);
                let out = grown.packets((0, TunnelOut)) + grown.packets((0, TunnelOutDevice));
                let into = grown.packets((1, TunnelIn)) + grown.packets((1, TunnelInDevice));
                assert!(out > 0 && into > 0, "{grown}");
            }
        }
    }
}

/// Returns a pod that forwards everything with its own address as the source.
pub fn forwarding_pod(node: &Node) -> Pod {
    let pod = node.add_pod("gateway").unwrap();
    for (family, switch) in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].into_iter().enumerate() {
        pod.sysctl(switch, "1").unwrap();
        ip_tables(&pod, family, "-t nat -A POSTROUTING -o eth0 -j MASQUERADE");
    }
    pod
}

/// Makes this the destination of everything that a forwarding pod receives from its node.
fn forward_to(pod: &Pod, family: usize, destination: IpAddr) {
    ip_tables(pod, family, "-t nat -F PREROUTING");
    let rule = format!("-t nat -A PREROUTING -i eth0 -j DNAT --to-destination {destination}");
    ip_tables(pod, family, &rule);
}

const fn network(host: u8) -> [IpAddr; 2] {
    [
        IpAddr::V4(Ipv4Addr::new(192, 168, 7, host)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x192, 0x168, 7, 0, 0, 0, host as u16)),
    ]
}

/// Asserts that segments stay whole from end to end: some frame is larger than any link's MTU.
fn assert_large_segments(frames: &[Vec<u8>]) {
    let largest = frames.iter().map(Vec::len).max();
    assert!(largest > Some(9000), "the largest frame had {largest:?} bytes");
}
