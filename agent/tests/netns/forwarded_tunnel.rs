//! A pod's packet never leaves as a tunnel packet, whatever a rule of the host makes of it.

use std::net::Ipv4Addr;

use podwire_common::reason::Drop;
use xtask::lab::frames::{self, Capture};
use xtask::lab::{Lab, traffic};

use crate::check::Counted;
use crate::packets::{ETHERNET, Packet, Vxlan, inner, udp};
use crate::refused::grown;
use crate::service::iptables;
use crate::{sockets, v4};

/// A UDP NodePort of kube-proxy with the other node's VXLAN port behind it.
const NODE_PORT: u16 = 30472;

#[test]
fn a_pods_tunnel_packet_is_not_masqueraded() {
    let lab = Lab::builder().build().unwrap();
    let [pod, other] = ["pod", "other"].map(|name| lab.node(0).add_pod(name).unwrap());
    let far = lab.node(1).add_pod("far").unwrap();
    let node = v4(lab.node(0).address());
    // The inner source is another pod of this node: the other node accepts that pod's packets from
    // this node.
    let forged = inner(&Packet::new(v4(other.address()), v4(far.address()), udp(4000, 5000)));
    let tunnel = Vxlan::new(v4(pod.address()), node).around(&forged);
    let frame = Packet::new(v4(pod.address()), node, udp(4000, NODE_PORT))
        .macs(pod.host_mac(), pod.eth0_mac())
        .with(|packet| packet.payload = tunnel[ETHERNET + 20 + 8..].to_vec())
        .build();
    let masquerade = "POSTROUTING -p udp --dport 8472 -j MASQUERADE";
    let capture = Capture::start(&far, "eth0").unwrap();
    // Send by the uplink, and through the tunnel to the address that the node has among its pods.
    for address in [lab.node(1).address(), lab.node(1).gateway()] {
        for is_masqueraded in [true, false] {
            let dnat =
                format!("PREROUTING -p udp --dport {NODE_PORT} -j DNAT --to-destination {address}:8472");
            let rules = [Some(dnat.as_str()), is_masqueraded.then_some(masquerade)];
            let each = |action| {
                for rule in rules.into_iter().flatten() {
                    iptables(lab.node(0), &format!("-t nat {action} {rule}"));
                }
            };
            each("-A");
            let before = Counted::quiet(&lab);
            frames::send(&pod, "eth0", &frame).unwrap();
            // The packet passes a hook, the stack, and another hook: wait until both hooks have
            // counted it.
            grown(&lab, &before);
            let grown = Counted::quiet(&lab).since(&before);
            let case = format!("to {address}, masqueraded {is_masqueraded}: {grown}");
            assert_eq!(grown.drops(0).get(Drop::VxlanFromPod.name()), Some(&1), "{case}");
            assert!(grown.drops(1).is_empty(), "{case}");
            each("-D");
            lab.node(0).exec(&["conntrack", "-F"]).unwrap();
        }
    }
    let received = capture.finish().unwrap();
    assert!(!received.iter().any(|frame| frame[..6] == far.eth0_mac()), "{received:02x?}");
    // The tunnel itself still works with such a rule, and so do packets that the stack puts into
    // the tunnel.
    iptables(lab.node(0), &format!("-t nat -A {masquerade}"));
    traffic::tcp_exchange(&pod, &far, far.address(), 8080, 1 << 20).unwrap();
    traffic::tcp_exchange(lab.node(0), &far, far.address(), 8080, 1 << 20).unwrap();
    let before = Counted::quiet(&lab);
    traffic::udp_exchange(&pod, &far, far.address(), 8080, 20_000).unwrap();
    Counted::quiet(&lab).since(&before).expect(&[], &[]).unwrap();
}

#[test]
fn a_process_of_the_node_may_use_the_tunnels_port() {
    let lab = Lab::builder().build().unwrap();
    let far_node = v4(lab.node(1).address());
    let before = Counted::quiet(&lab);
    let socket = sockets::udp(lab.node(0), (Ipv4Addr::UNSPECIFIED, 0));
    socket.send_to(&[0; 60], (far_node, 8472)).unwrap();
    // The packet gets to the other node, which drops it.
    let grown = grown(&lab, &before);
    assert!(grown.drops(0).is_empty(), "{grown}");
    assert_eq!(grown.drops(1).get(Drop::TunnelVniUnknown.name()), Some(&1), "{grown}");
}
