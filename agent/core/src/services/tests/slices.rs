//! Several slices, entries for one address, ports and families.

use super::super::{Protocol, ServedPort, served_ports};
use super::*;

fn http(slices: &[&EndpointSlice]) -> ServedPort {
    served_ports(&service(), slices, &node()).remove(0)
}

/// Compares the backends of two slices, in either order of the slices.
#[track_caller]
fn check(one: &[&str], other: &[&str], wanted: &[&str]) {
    let (one, other) = (slice(one), slice(other));
    for slices in [[&one, &other], [&other, &one]] {
        assert_eq!(sockets(&http(&slices).cluster), wanted);
    }
}

#[test]
fn slices_of_a_service_are_one_list_in_order() {
    check(&["7 ready", "30 ready"], &["4 ready"], &["10.0.0.4:8080", "10.0.0.7:8080", "10.0.0.30:8080"]);
}

#[test]
fn endpoint_in_two_slices_counts_once() {
    check(&["1 ready", "2 ready"], &["2 ready", "1 ready"], &["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn endpoint_that_does_not_terminate_precedes_one_that_does() {
    check(&["1 serving terminating"], &["1 ready"], &["10.0.0.1:8080"]);
    // With the address of a ready but terminating one there is a new pod that is not ready yet.
    check(&["1 ready terminating", "2 ready"], &["1"], &["10.0.0.2:8080"]);
}

#[test]
fn ready_entry_precedes_one_that_is_not() {
    check(&["1 ready"], &["1"], &["10.0.0.1:8080"]);
    check(&["1 serving terminating"], &["1 terminating"], &["10.0.0.1:8080"]);
}

#[test]
fn entries_with_equal_conditions_have_a_fixed_order() {
    let node = ThisNode { zone: Some("zone-b".into()), ..node() };
    for [one, other, third] in [
        ["1 ready here", "1 ready", "2 ready"],
        ["1 ready zone-a", "1 ready zone-b", "2 ready zone-a"],
        ["1 ready node-1", "1 ready node-2", "2 ready node-2"],
    ] {
        let [one, other, third] = [one, other, third].map(|endpoint| slice(&[endpoint]));
        let served = |slices| served_ports(&service(), slices, &node);
        assert_eq!(served(&[&one, &other, &third]), served(&[&third, &other, &one]));
    }
}

#[test]
fn one_address_with_two_ports_has_two_backends() {
    let mut other = slice(&["1 ready", "2 ready"]);
    other.ports[0].port = port(9090);
    let backends = http(&[&slice(&["1 ready"]), &other]).cluster;
    assert_eq!(sockets(&backends), ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]);
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut service = service();
    service.ports = vec![
        service_port("dns", Protocol::Udp, 53),
        service_port("dns-tcp", Protocol::Tcp, 53),
        service_port("dns", Protocol::Tcp, 54),
        service_port("", Protocol::Sctp, 55),
    ];
    let mut slice = slice(&["1 ready"]);
    slice.ports = vec![
        endpoint_port("dns-tcp", Protocol::Tcp, 5301),
        endpoint_port("dns", Protocol::Udp, 5300),
        endpoint_port("", Protocol::Sctp, 5500),
        endpoint_port("metrics", Protocol::Tcp, 9153),
    ];
    service.cluster_ips.truncate(1);
    let served = served_ports(&service, &[&slice], &node());
    let backends: Vec<_> = served.iter().map(|port| sockets(&port.cluster).join(" ")).collect();
    assert_eq!(backends, ["10.0.0.1:5300", "10.0.0.1:5301", "", "10.0.0.1:5500"]);
}

#[test]
fn each_family_has_its_own_endpoints_and_readiness() {
    let v4 = slice(&["1 serving terminating", "2 serving terminating"]);
    let v6 = slice(&["fd00::1 ready", "fd00::2 serving terminating"]);
    let served = served_ports(&service(), &[&v6, &v4], &node());
    let backends: Vec<_> = served.iter().map(|port| sockets(&port.cluster)).collect();
    assert_eq!(backends, [vec!["10.0.0.1:8080", "10.0.0.2:8080"], vec!["[fd00::1]:8080"]]);
}

#[test]
fn address_of_another_family_in_a_slice_is_used_in_its_own() {
    let mixed = slice(&["1 ready", "fd00::1 ready"]);
    let served = served_ports(&service(), &[&mixed], &node());
    let backends: Vec<_> = served.iter().map(|port| sockets(&port.cluster)).collect();
    assert_eq!(backends, [["10.0.0.1:8080"], ["[fd00::1]:8080"]]);
}

#[test]
fn endpoint_without_a_node_is_not_local() {
    let mut slice = slice(&["1 ready here", "2 ready"]);
    slice.endpoints[1].node = None;
    let is_local: Vec<_> = http(&[&slice]).cluster.iter().map(|backend| backend.is_local).collect();
    assert_eq!(is_local, [true, false]);
}

#[test]
fn endpoints_that_serve_keep_their_udp_flows() {
    let slice = slice(&[
        "1 ready zone-a",
        "2 serving terminating",
        "3 terminating",
        "4",
        "5 serving",
        "6 ready zone-b",
    ]);
    let node = ThisNode { zone: Some("zone-a".into()), ..node() };
    let served = |protocol| {
        let service = Service { ports: vec![service_port("http", protocol, 80)], ..service() };
        let slice = EndpointSlice { ports: vec![endpoint_port("http", protocol, 8080)], ..slice.clone() };
        let served = served_ports(&service, &[&slice], &node).remove(0);
        assert_eq!(sockets(&served.cluster), ["10.0.0.1:8080"]);
        sockets(&served.serving)
    };
    assert_eq!(served(Protocol::Udp), [1, 2, 5, 6].map(|last| format!("10.0.0.{last}:8080")));
    assert!(served(Protocol::Tcp).is_empty(), "TCP ends by itself");
}
