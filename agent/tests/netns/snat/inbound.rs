//! A client outside that reaches a pod by the pod's own address gets answers from that address.

use std::net::SocketAddr;

use podwire_common::reason::Path;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode};

use super::ask;
use crate::sockets::udp;

#[test]
fn a_client_that_is_routed_to_a_pod_is_answered_by_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("server").unwrap();
        lab.underlay().ip(&format!("route replace {} via {}\n", node.pod_cidr(), node.address())).unwrap();

        let exchange = traffic::tcp_exchange(lab.world(), &pod, pod.address(), 8080, 1 << 20).unwrap();
        assert_eq!(exchange.peer_seen_by_client.ip(), pod.address(), "{mode:?}");
        assert_eq!(exchange.peer_seen_by_server, exchange.client, "{mode:?}");
        let (server, client) = (udp(&pod, "0.0.0.0:8080"), udp(lab.world(), "0.0.0.0:5353"));
        let seen = ask(&client, &server, SocketAddr::new(pod.address(), 8080), "by its own address");
        assert_eq!(seen, SocketAddr::new(lab.world_address(), 5353), "{mode:?}");
        assert!(traffic::ping(lab.world(), pod.address(), 56).is_ok(), "{mode:?}");
        let counted = node.traffic().unwrap();
        assert!(counted[Path::Untranslated.name()] > 0, "{mode:?}: {counted:?}");

        // Flows that the pod begins itself are translated, to the same host too.
        let (server, client) = (udp(lab.world(), "0.0.0.0:53"), udp(&pod, "0.0.0.0:40000"));
        let seen = ask(&client, &server, SocketAddr::new(lab.world_address(), 53), "begun by the pod");
        assert_eq!(seen.ip(), node.address(), "{mode:?}");
    }
}
