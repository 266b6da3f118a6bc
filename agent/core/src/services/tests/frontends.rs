//! At which addresses and ports a Service is served, and for whom.

use super::super::{Answer, Frontend, FrontendKind, served_ports};
use super::*;

/// Returns a Service with all kinds of addresses, in both families.
fn reached_from_outside(external: TrafficPolicy) -> Service {
    let mut service = service();
    service.ports[0].node_port = Some(port(30080));
    service.external_ips = vec![ip("203.0.113.7"), ip("2001:db8::7"), ip("203.0.113.6")];
    service.load_balancer_ips = vec![ip("203.0.113.10"), ip("2001:db8::10")];
    service.external_policy = external;
    service
}

fn frontends(service: &Service, endpoints: &[&str], node: &ThisNode) -> Vec<Frontend> {
    let served = served_ports(service, &[&slice(endpoints)], node);
    served.into_iter().flat_map(|port| port.frontends).collect()
}

fn of_address(service: &Service, endpoints: &[&str], node: &ThisNode, address: &str) -> Frontend {
    let mut frontends = frontends(service, endpoints, node).into_iter();
    frontends.find(|frontend| frontend.address == ip(address)).unwrap()
}

#[test]
fn each_family_has_all_kinds_of_frontends_in_order() {
    let service = reached_from_outside(TrafficPolicy::Cluster);
    let found = frontends(&service, &["1 ready"], &node());
    let found: Vec<_> =
        found.iter().map(|frontend| (frontend.kind, frontend.address, frontend.port.get())).collect();
    use FrontendKind::*;
    let wanted = [
        (ClusterIp, ip("10.96.0.7"), 80),
        (NodePort, ip("0.0.0.0"), 30080),
        (ExternalIp, ip("203.0.113.6"), 80),
        (ExternalIp, ip("203.0.113.7"), 80),
        (LoadBalancer, ip("203.0.113.10"), 80),
        (ClusterIp, ip("fd00:96::7"), 80),
        (NodePort, ip("::"), 30080),
        (ExternalIp, ip("2001:db8::7"), 80),
        (LoadBalancer, ip("2001:db8::10"), 80),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn family_without_a_cluster_ip_has_no_frontends() {
    let mut service = reached_from_outside(TrafficPolicy::Cluster);
    service.cluster_ips = vec![ip("fd00:96::7")];
    let found = frontends(&service, &["1 ready", "fd00::1 ready"], &node());
    assert_eq!(found.len(), 4);
    assert!(found.iter().all(|frontend| frontend.address.is_ipv6()));
}

#[test]
fn external_ip_of_the_load_balancer_has_its_source_ranges() {
    let mut service = reached_from_outside(TrafficPolicy::Cluster);
    service.external_ips = vec![ip("203.0.113.10"), ip("203.0.113.7"), ip("203.0.113.7")];
    service.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    service.cluster_ips.truncate(1);
    let found = frontends(&service, &["1 ready"], &node());
    let found: Vec<_> = found.iter().map(|frontend| (frontend.kind, frontend.source_ranges.len())).collect();
    use FrontendKind::*;
    assert_eq!(found, [(ClusterIp, 0), (NodePort, 0), (ExternalIp, 0), (LoadBalancer, 1)]);
}

/// Policies of a Service, its endpoints, and what happens to clients of its ClusterIP inside, of
/// its other addresses inside, and of those outside.
type Row = (TrafficPolicy, TrafficPolicy, &'static [&'static str], [Answer; 3]);

#[rustfmt::skip]
const ANSWERS: &[Row] = {
    use Answer::{Dropped, Refused};
    use TrafficPolicy::{Cluster, Local};
    &[
        (Cluster, Cluster, &["1 ready here", "2 ready"], [Answer::Cluster, Answer::Cluster, Answer::Cluster]),
        (Cluster, Local, &["1 ready here", "2 ready"], [Answer::Cluster, Answer::Cluster, Answer::Local]),
        (Local, Cluster, &["1 ready here", "2 ready"], [Answer::Local, Answer::Cluster, Answer::Cluster]),
        (Local, Local, &["1 ready here", "2 ready"], [Answer::Local, Answer::Cluster, Answer::Local]),
        (Cluster, Cluster, &["2 ready"], [Answer::Cluster, Answer::Cluster, Answer::Cluster]),
        (Cluster, Local, &["2 ready"], [Answer::Cluster, Answer::Cluster, Dropped]),
        (Local, Cluster, &["2 ready"], [Dropped, Answer::Cluster, Answer::Cluster]),
        (Local, Local, &["2 ready"], [Dropped, Answer::Cluster, Dropped]),
        (Cluster, Local, &["1 here", "2 serving terminating"], [Answer::Cluster, Answer::Cluster, Dropped]),
        (Cluster, Cluster, &["1 here", "2"], [Refused, Refused, Refused]),
        (Cluster, Local, &["1 here", "2"], [Refused, Refused, Refused]),
        (Local, Local, &["1 here", "2"], [Refused, Refused, Refused]),
        (Local, Local, &[], [Refused, Refused, Refused]),
    ]
};

#[test]
fn policy_local_drops_and_no_endpoint_refuses() {
    for (internal, external, endpoints, [cluster_ip, inside, outside]) in ANSWERS {
        let mut service = reached_from_outside(*external);
        service.internal_policy = *internal;
        service.cluster_ips.truncate(1);
        for frontend in frontends(&service, endpoints, &node()) {
            let (inside, outside) = match frontend.kind {
                FrontendKind::ClusterIp => (*cluster_ip, None),
                _ => (*inside, Some(*outside)),
            };
            let situation = format!("{internal:?} {external:?} {endpoints:?} {:?}", frontend.kind);
            assert_eq!((frontend.inside, frontend.outside), (inside, outside), "{situation}");
        }
    }
}

#[test]
fn external_policy_local_keeps_the_addresses_of_outside_clients() {
    for (policy, keeps) in [(TrafficPolicy::Cluster, false), (TrafficPolicy::Local, true)] {
        for frontend in frontends(&reached_from_outside(policy), &["1 ready here"], &node()) {
            let keeps = keeps && frontend.kind != FrontendKind::ClusterIp;
            assert_eq!(frontend.keeps_client_address, keeps, "{policy:?} {:?}", frontend.kind);
        }
    }
}

#[test]
fn each_answer_has_its_own_backends() {
    let service = reached_from_outside(TrafficPolicy::Local);
    let served = served_ports(&service, &[&slice(&["1 ready here", "2 ready"])], &node()).remove(0);
    assert_eq!(sockets(served.backends(Answer::Cluster)), ["10.0.0.1:8080", "10.0.0.2:8080"]);
    assert_eq!(sockets(served.backends(Answer::Local)), ["10.0.0.1:8080"]);
    assert_eq!(served.backends(Answer::Dropped), []);
}

#[test]
fn affinity_is_that_of_the_service() {
    let mut service = service();
    service.affinity = std::num::NonZeroU32::new(120);
    let served = served_ports(&service, &[], &node());
    assert!(served.iter().all(|port| port.affinity == service.affinity));
}

/// Compares the source ranges of the load balancer's IPv4 address, then of the IPv6 one.
#[track_caller]
fn check_ranges(node_addresses: &[&str], ranges: &[&str], wanted: [&[&str]; 2]) {
    let mut service = reached_from_outside(TrafficPolicy::Cluster);
    service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    let node = ThisNode { addresses: node_addresses.iter().map(|address| ip(address)).collect(), ..node() };
    for (address, wanted) in ["203.0.113.10", "2001:db8::10"].into_iter().zip(wanted) {
        let found = of_address(&service, &["1 ready"], &node, address).source_ranges;
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, wanted, "{address}");
    }
}

#[test]
fn source_ranges_hold_for_addresses_of_their_family() {
    check_ranges(&[], &[], [&[], &[]]);
    let both = ["198.51.100.0/24", "2001:db8:100::/64"];
    check_ranges(&[], &both, [&both[..1], &both[1..]]);
    check_ranges(&[], &both[..1], [&both[..1], &[]]);
}

#[test]
fn source_ranges_are_in_order_once_and_without_host_bits() {
    let ranges = ["198.51.100.9/24", "192.0.2.0/25", "198.51.100.0/24"];
    check_ranges(&[], &ranges, [&["192.0.2.0/25", "198.51.100.0/24"], &[]]);
}

#[test]
fn source_range_of_all_addresses_restricts_nobody_of_its_family() {
    let ranges = ["198.51.100.0/24", "0.0.0.0/0", "2001:db8:100::/64"];
    check_ranges(&[], &ranges, [&[], &["2001:db8:100::/64"]]);
}

#[test]
fn source_range_of_this_node_adds_the_load_balancers_addresses() {
    let ranges = ["172.31.0.0/16", "2001:db8:100::/64"];
    let node = ["172.31.0.1", "fd00:172:31::1"];
    check_ranges(&node, &ranges, [&["172.31.0.0/16", "203.0.113.10/32"], &["2001:db8:100::/64"]]);
}

#[test]
fn only_load_balancer_addresses_have_source_ranges() {
    let mut service = reached_from_outside(TrafficPolicy::Cluster);
    service.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    for frontend in frontends(&service, &["1 ready"], &node()) {
        let is_restricted = frontend.kind == FrontendKind::LoadBalancer && frontend.address.is_ipv4();
        assert_eq!(!frontend.source_ranges.is_empty(), is_restricted, "{:?}", frontend.kind);
    }
}
