//! IPv4 routes by an IPv6 router: pods reach nodes and the world by them, on every path past the
//! host stack.

use std::collections::BTreeSet;

use podwire_common::abi::{FAMILY_IPV6, LEAVES_INTO_POD};
use podwire_common::names::maps;
use podwire_common::reason::Path::{
    DirectIn, DirectOut, HostPortIn, HostPortOut, SnatIn, SnatOut, TunnelIn, TunnelOut,
};
use serde_json::json;
use xtask::lab::{Lab, Mode, Ns, traffic};

use crate::check::{Counted, Counter, Row, check};

/// The underlay's address on each of its links.
const ROUTER: &str = "fe80::1";
const HOST_PORT: u16 = 8080;

#[test]
fn an_ipv4_route_leads_by_an_ipv6_router() {
    for mode in [Mode::Vxlan, Mode::Direct] {
        let lab = Lab::builder().mode(mode).router(true).build().unwrap();
        for node in lab.nodes() {
            let (name, link) = (node.name(), node.uplink());
            allow_ipv6(lab.underlay(), name);
            lab.underlay().ip(&format!("address add {ROUTER}/64 dev {name} nodad\n")).unwrap();
            allow_ipv6(node, link);
            node.ip(&format!("route replace 0.0.0.0/0 via inet6 {ROUTER} dev {link}\n")).unwrap();
        }
        let mapping = json!({"portMappings": [
            {"hostPort": HOST_PORT, "containerPort": HOST_PORT, "protocol": "tcp"},
            {"hostPort": HOST_PORT, "containerPort": HOST_PORT, "protocol": "udp"},
        ]});
        let pod = lab.node(0).add_pod("pod").unwrap();
        let server = lab.node(0).add_pod_with("server", &mapping).unwrap();
        let far = lab.node(1).add_pod("far").unwrap();
        let (out, into) = match mode {
            Mode::Vxlan => (TunnelOut, TunnelIn),
            Mode::Direct => (DirectOut, DirectIn),
        };
        let both_ways: [Counter; 4] = [(0, out), (1, into), (1, out), (0, into)];
        let to_world = [(0, SnatOut), (0, SnatIn)];
        check(
            &lab,
            &[
                Row::new("pods", (&pod, pod.address()), (&far, far.address())).takes(&both_ways),
                Row::new("a pod to the world", (&pod, pod.address()), (lab.world(), lab.world_address()))
                    .seen_as(lab.node(0).address())
                    .takes(&to_world),
            ],
        );
        let host_port = traffic::Route::to(lab.node(0).address(), HOST_PORT);
        for (what, client, seen) in
            [("the world", lab.world(), lab.world_address()), ("a pod of another node", &*far, far.address())]
        {
            let before = Counted::quiet(&lab);
            let streamed = traffic::tcp_exchange_on(client, &server, host_port, 4 << 20);
            let grown = Counted::quiet(&lab).since(&before);
            let streamed = streamed.unwrap_or_else(|error| panic!("{mode:?}, {what}: {error:#}; {grown}"));
            assert_eq!(streamed.peer_seen_by_server.ip(), seen, "{mode:?}, {what}");
            grown.expect(&[(0, HostPortIn), (0, HostPortOut)], &[]).unwrap();
        }
        // Later connections to the same destination: they go past the host's rules from the first
        // packet on.
        for _ in 0..4 {
            traffic::tcp_exchange(&pod, lab.world(), lab.world_address(), 8443, 1 << 20).unwrap();
        }
        for node in lab.nodes() {
            let known = node.map_dump(maps::FLOWS).unwrap();
            let known = known.as_array().unwrap().iter().map(|entry| &entry["formatted"]["value"]);
            let leaving = known.filter(|known| known["leaves"] != u64::from(LEAVES_INTO_POD));
            let routers: BTreeSet<_> = leaving.map(|known| known["next_hop"]["family"].as_u64()).collect();
            assert_eq!(routers, [Some(FAMILY_IPV6.into())].into(), "{mode:?}: routers that are known");
            let neighbours = node.exec(&["ip", "neigh", "show"]).unwrap();
            assert!(!neighbours.contains("254.128.0.0"), "{mode:?}: {neighbours}");
            assert!(neighbours.contains(ROUTER), "{mode:?}: the IPv6 router was asked for: {neighbours}");
        }
    }
}

/// Switches IPv6 on for a link. A lab has no IPv6 elsewhere.
fn allow_ipv6(ns: &Ns, link: &str) {
    ns.sysctl(&format!("net/ipv6/conf/{link}/disable_ipv6"), "0").unwrap();
}
