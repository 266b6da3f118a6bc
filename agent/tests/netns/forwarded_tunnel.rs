//! A pod's packet never leaves as a tunnel packet, whatever a rule of the host makes of it.

use std::net::{IpAddr, SocketAddr};

use podwire_common::names::{INNER_DESTINATION_MAC, INNER_SOURCE_MAC};
use podwire_common::reason::Drop;
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Lab, Pod, traffic};

use crate::check::Counted;
use crate::packets::{OUTER, Packet, Vxlan, inner, udp};
use crate::packets6::{Packet6, over_ipv6};
use crate::refused::grown;
use crate::sockets::unspecified;
use crate::{FAMILIES, ip_tables, sockets, v4, v6};

/// A UDP NodePort of kube-proxy with the other node's VXLAN port behind it.
const NODE_PORT: u16 = 30472;
/// The family of a tunnel, and of its outer headers.
const TUNNELS: [&str; 2] = ["ipv4", "ipv6"];
const MASQUERADE: &str = "POSTROUTING -p udp --dport 8472 -j MASQUERADE";

#[test]
fn a_pods_tunnel_packet_is_not_masqueraded() {
    for (tunnel, name) in TUNNELS.into_iter().enumerate() {
        let lab = Lab::builder().agent_arguments(&["--tunnel-family", name]).build().unwrap();
        let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
        let far = lab.node(1).add_pod("far").unwrap();
        let capture = Capture::start(&far, "eth0").unwrap();
        for family in FAMILIES {
            for inner_family in FAMILIES {
                let forged = forged(&other, &far, inner_family);
                let frame = as_node_port(&pod, lab.node(0).addresses()[family], &forged);
                refuse(&lab, &pod, family, &frame);
            }
        }
        let received = capture.finish().unwrap();
        assert!(!received.iter().any(|frame| frame[..6] == far.eth0_mac()), "{received:02x?}");
        // The tunnel itself still works with such a rule, and so do packets that the stack puts
        // into the tunnel.
        ip_tables(lab.node(0), tunnel, &format!("-t nat -A {MASQUERADE}"));
        for address in far.addresses() {
            traffic::tcp_exchange(&pod, &far, *address, 8080, 1 << 20).unwrap();
            traffic::tcp_exchange(lab.node(0), &far, *address, 8080, 1 << 20).unwrap();
            let before = Counted::quiet(&lab);
            traffic::udp_exchange(&pod, &far, *address, 8080, 20_000).unwrap();
            Counted::quiet(&lab).since(&before).expect(&[], &[]).unwrap();
        }
    }
}

/// Sends the frame while rules of the node lead it to the other node's VXLAN port. Asserts that the
/// node drops it.
fn refuse(lab: &Lab, pod: &Pod, family: usize, frame: &[u8]) {
    let [node, other] = [0, 1].map(|node| lab.node(node));
    // Send by the uplink, and through the tunnel to the address that the node has among its pods.
    for address in [other.addresses()[family], other.overlay_addresses()[family]] {
        // The node has a neighbour entry for the other one then, and holds no packet back.
        traffic::ping(node, address, 56).unwrap();
        let to = SocketAddr::new(address, 8472);
        for is_masqueraded in [true, false] {
            let dnat = format!("PREROUTING -p udp --dport {NODE_PORT} -j DNAT --to-destination {to}");
            let rules = [Some(dnat.as_str()), is_masqueraded.then_some(MASQUERADE)];
            let each = |action| {
                for rule in rules.into_iter().flatten() {
                    ip_tables(node, family, &format!("-t nat {action} {rule}"));
                }
            };
            each("-A");
            let before = Counted::quiet(lab);
            frames::send(pod, "eth0", frame).unwrap();
            // The packet passes a hook, the stack, and another hook: wait until both hooks have
            // counted it.
            grown(lab, &before);
            let grown = Counted::quiet(lab).since(&before);
            let case = format!("to {to}, masqueraded {is_masqueraded}: {grown}");
            assert_eq!(grown.drops(0).get(Drop::VxlanFromPod.name()), Some(&1), "{case}");
            assert!(grown.drops(1).is_empty(), "{case}");
            each("-D");
            node.exec(&["conntrack", "-F", "-f", TUNNELS[family]]).unwrap();
        }
    }
}

/// Returns a frame for a pod of the other node, as it is in the tunnel. Its source is another pod
/// of this node: the other node accepts that pod's packets from this node.
fn forged(from: &Pod, to: &Pod, family: usize) -> Vec<u8> {
    match (from.addresses()[family], to.addresses()[family]) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            inner(&Packet::new(source, destination, udp(4000, 5000)))
        }
        (source, destination) => Packet6::new(v6(source), v6(destination), udp(4000, 5000))
            .macs(INNER_DESTINATION_MAC, INNER_SOURCE_MAC)
            .build(),
    }
}

/// Returns a pod's packet to a NodePort of its node. Behind the UDP header it is a tunnel packet.
fn as_node_port(pod: &Pod, node: IpAddr, forged: &[u8]) -> Vec<u8> {
    let transport = udp(4000, NODE_PORT);
    let macs = (pod.host_mac(), pod.eth0_mac());
    match node {
        IpAddr::V4(node) => {
            let source = v4(pod.addresses()[0]);
            let tunnel = Vxlan::new(source, node).around(forged);
            let packet = Packet::new(source, node, transport).macs(macs.0, macs.1);
            packet.with(|packet| packet.payload = tunnel[OUTER - 8..].to_vec()).build()
        }
        IpAddr::V6(node) => {
            let tunnel = over_ipv6(v6(pod.addresses()[1]), node, 4000, forged).macs(macs.0, macs.1);
            tunnel.with(|packet| packet.transport = transport).build()
        }
    }
}

#[test]
fn a_process_of_the_node_may_use_the_tunnels_port() {
    let lab = Lab::builder().build().unwrap();
    for far_node in lab.node(1).addresses() {
        let before = Counted::quiet(&lab);
        let socket = sockets::udp(lab.node(0), (unspecified(far_node), 0));
        socket.send_to(&[0; 60], (far_node, 8472)).unwrap();
        // The packet gets to the other node, which drops it.
        let grown = grown(&lab, &before);
        assert!(grown.drops(0).is_empty(), "{far_node}: {grown}");
        assert_eq!(grown.drops(1).get(Drop::TunnelVniUnknown.name()), Some(&1), "{far_node}: {grown}");
    }
}
