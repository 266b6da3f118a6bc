//! A client outside that reaches a pod by the pod's own address gets answers from that address.

use std::net::SocketAddr;

use podwire_common::reason::Path;
use xtask::lab::traffic;
use xtask::lab::{Lab, Mode};

use super::ask;
use crate::sockets::{udp, unspecified};
use crate::{FAMILIES, Place as _, world_end};

#[test]
fn a_client_that_is_routed_to_a_pod_is_answered_by_it() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().nodes(1).mode(mode).build().unwrap();
        let node = lab.node(0);
        let pod = node.add_pod("server").unwrap();
        for family in FAMILIES {
            let ((world, world_address), (_, own)) = (world_end(&lab, family), pod.end(family));
            let (any, node_address) = (unspecified(own), node.addresses()[family]);
            let route = format!("route replace {} via {node_address}\n", node.pod_cidrs()[family]);
            lab.underlay().ip(&route).unwrap();
            let untranslated = || node.traffic().unwrap().get(Path::Untranslated.name()).copied();
            let before = untranslated();

            let exchange = traffic::tcp_exchange(world, &pod, own, 8080, 1 << 20).unwrap();
            assert_eq!(exchange.peer_seen_by_client.ip(), own, "{mode:?}");
            assert_eq!(exchange.peer_seen_by_server, exchange.client, "{mode:?}");
            let (server, client) = (udp(&pod, (any, 8080)), udp(world, (any, 5353)));
            let seen = ask(&client, &server, SocketAddr::new(own, 8080), "by its own address");
            assert_eq!(seen, SocketAddr::new(world_address, 5353), "{mode:?}");
            assert!(traffic::ping(world, own, 56).is_ok(), "{mode:?}");
            assert!(untranslated() > before, "{mode:?}, {own}: {:?}", node.traffic());

            // Flows that the pod begins itself are translated, to the same host too.
            let (server, client) = (udp(world, (any, 53)), udp(&pod, (any, 40000)));
            let seen = ask(&client, &server, SocketAddr::new(world_address, 53), "begun by the pod");
            assert_eq!(seen.ip(), node_address, "{mode:?}");
        }
    }
}
