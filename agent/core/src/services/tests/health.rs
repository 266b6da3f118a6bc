//! The health check of a Service.

use super::super::{Protocol, health_check};
use super::*;
use crate::model::Family;

fn checked() -> Service {
    Service { external_policy: TrafficPolicy::Local, health_check_port: Some(port(30595)), ..service() }
}

/// Compares the number of local ready endpoints of both families.
#[track_caller]
fn check(slices: &[&EndpointSlice], wanted: [usize; 2]) {
    let health = health_check(&checked(), slices, &node()).unwrap();
    assert_eq!(health.port, port(30595));
    assert_eq!(health.local_ready, Family::ALL.into_iter().zip(wanted).collect());
}

#[test]
fn ready_endpoints_on_this_node_are_counted() {
    check(&[], [0, 0]);
    check(&[&slice(&["1 ready here", "2 ready here", "3 ready", "4 here"])], [2, 0]);
    check(&[&slice(&["1 ready here"]), &slice(&["fd00::1 ready here", "fd00::2 ready here"])], [1, 2]);
}

#[test]
fn terminating_endpoints_do_not_count() {
    check(&[&slice(&["1 serving terminating here"])], [0, 0]);
}

#[test]
fn endpoint_with_several_ports_or_entries_counts_once() {
    let mut ports = slice(&["1 ready here"]);
    ports.ports.push(endpoint_port("metrics", Protocol::Tcp, 9153));
    check(&[&ports, &slice(&["1 ready here"])], [1, 0]);
}

#[test]
fn port_that_the_service_lacks_counts() {
    let mut other = slice(&["1 ready here"]);
    other.ports = vec![endpoint_port("metrics", Protocol::Tcp, 9153)];
    check(&[&other], [1, 0]);
    other.ports.clear();
    check(&[&other], [0, 0]);
}

#[test]
fn only_families_with_a_cluster_ip_are_checked() {
    let mut service = checked();
    service.cluster_ips.truncate(1);
    let health = health_check(&service, &[&slice(&["fd00::1 ready here"])], &node()).unwrap();
    assert_eq!(health.local_ready, [(Family::V4, 0)].into());
}

#[test]
fn only_external_policy_local_has_a_health_check() {
    let service = Service { external_policy: TrafficPolicy::Cluster, ..checked() };
    assert_eq!(health_check(&service, &[], &node()), None);
    assert_eq!(health_check(&Service { health_check_port: None, ..checked() }, &[], &node()), None);
}
