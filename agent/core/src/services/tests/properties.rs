//! What holds for all Services, slices and nodes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::{Answer, Frontend, FrontendKind, ServedPort, candidacies, health_check, served_ports};
use super::*;
use crate::model::Family;

/// Of each value there are few, so that endpoints meet.
fn some_endpoint() -> impl Strategy<Value = Endpoint> {
    let names = |prefix: &'static str| {
        prop::collection::btree_set((1u8..3).prop_map(move |number| format!("{prefix}-{number}")), 0..3)
    };
    let address = prop::sample::select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]);
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    let node = prop::option::of((1u8..3).prop_map(|number| format!("node-{number}")));
    (address, conditions, node, names("zone"), names("node")).prop_map(
        |(address, (is_ready, is_serving, is_terminating), node, zones, nodes)| Endpoint {
            address: ip(address),
            is_ready,
            is_serving,
            is_terminating,
            node: node.map(String::into_boxed_str),
            hints: Hints { zones, nodes }.boxed(),
        },
    )
}

fn some_slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
    let ports = prop::sample::subsequence(
        vec![
            endpoint_port("http", Protocol::Tcp, 8080),
            endpoint_port("http", Protocol::Udp, 8080),
            endpoint_port("http", Protocol::Tcp, 9090),
        ],
        0..=3,
    );
    let slice = (ports, prop::collection::vec(some_endpoint(), 0..6)).prop_map(|(ports, endpoints)| {
        EndpointSlice { name: "web".into(), service: name(), ports, endpoints }
    });
    prop::collection::vec(slice, 0..4)
}

fn some_service() -> impl Strategy<Value = Service> {
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    (policy(), policy(), any::<[bool; 4]>()).prop_map(
        |(internal, external, [has_v6, node_port, external_ip, load_balancer])| {
            let mut service = service();
            service.cluster_ips.truncate(1 + usize::from(has_v6));
            (service.internal_policy, service.external_policy) = (internal, external);
            service.ports.push(service_port("http", Protocol::Udp, 80));
            service.ports[0].node_port = node_port.then(|| port(30080));
            service.external_ips = external_ip.then(|| ip("203.0.113.7")).into_iter().collect();
            service.load_balancer_ips = load_balancer.then(|| ip("2001:db8::10")).into_iter().collect();
            service.health_check_port = Some(port(30595));
            service
        },
    )
}

fn some_node() -> impl Strategy<Value = ThisNode> {
    prop::option::of((1u8..4).prop_map(|zone| format!("zone-{zone}")))
        .prop_map(|zone| ThisNode { zone, ..node() })
}

/// Returns what is wrong with a served port, in words.
fn faults(port: &ServedPort, slices: &[EndpointSlice]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, fault: &str| {
        if !holds {
            faults.push(format!("{fault}: {port:?}"));
        }
    };
    let entries = |backend: &Backend| -> Vec<&Endpoint> {
        let slices = slices.iter().filter(|slice| {
            slice.ports.contains(&EndpointPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: backend.port,
            })
        });
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        endpoints.filter(|endpoint| endpoint.address == backend.address).collect()
    };
    for list in [&port.cluster, &port.local, &port.serving] {
        expect(list.is_sorted_by(|one, next| (one.address, one.port) < (next.address, next.port)), "order");
        expect(list.iter().all(|backend| Family::of(backend.address) == port.family), "family");
        expect(list.iter().all(|backend| !entries(backend).is_empty()), "not in a slice");
    }
    let is_usable =
        |endpoint: &&Endpoint| endpoint.is_ready || endpoint.is_serving && endpoint.is_terminating;
    let chosen = port.cluster.iter().chain(&port.local);
    expect(chosen.clone().all(|backend| entries(backend).iter().any(is_usable)), "not usable");
    expect(port.local.iter().all(|backend| backend.is_local), "not local");
    // If one is ready, all chosen ones are.
    for list in [&port.cluster, &port.local] {
        let ready = |backend: &Backend| entries(backend).iter().any(|endpoint| endpoint.is_ready);
        expect(list.iter().all(ready) || !list.iter().any(ready) || has_duplicates(slices), "ready and not");
    }
    for frontend in &port.frontends {
        let is_cluster_ip = frontend.kind == FrontendKind::ClusterIp;
        expect(frontend.outside.is_none() == is_cluster_ip, "outside");
        for answer in [Some(frontend.inside), frontend.outside].into_iter().flatten() {
            let has_backends = !port.backends(answer).is_empty();
            expect(has_backends == matches!(answer, Answer::Cluster | Answer::Local), "answer");
        }
        if !is_cluster_ip {
            expect(frontend.inside != Answer::Dropped, "only outside clients are dropped");
            let is_refused = |answer| answer == Answer::Refused;
            expect(is_refused(frontend.inside) == frontend.outside.is_some_and(is_refused), "refused");
        }
    }
    faults
}

fn has_duplicates(slices: &[EndpointSlice]) -> bool {
    let mut seen = BTreeSet::new();
    !slices.iter().flat_map(|slice| &slice.endpoints).all(|endpoint| seen.insert(endpoint.address))
}

proptest! {
    #[test]
    fn backends_are_usable_endpoints_in_order(
        service in some_service(), slices in some_slices(), node in some_node(),
    ) {
        let lists: Vec<_> = slices.iter().collect();
        for port in served_ports(&service, &lists, &node) {
            prop_assert_eq!(faults(&port, &slices), Vec::<String>::new());
        }
    }

    #[test]
    fn endpoints_are_used_as_their_reasons_say(
        service in some_service(), slices in some_slices(), node in some_node(),
    ) {
        let slices: Vec<_> = slices.iter().collect();
        for port in served_ports(&service, &slices, &node) {
            let answers = port.frontends.iter().flat_map(|frontend| [Some(frontend.inside), frontend.outside]);
            for answer in answers.flatten() {
                let all = candidacies(&slices, &port, &node);
                let used = all.iter().filter(|candidacy| candidacy.of(answer).is_used());
                let used: Vec<_> = used.map(|candidacy| candidacy.backend).collect();
                prop_assert_eq!(used, port.backends(answer), "{:?} {:?}", answer, port);
            }
        }
    }

    #[test]
    fn order_of_slices_and_endpoints_has_no_effect(
        service in some_service(),
        slices in some_slices(),
        node in some_node(),
        (turn, reverse) in (0usize..4, any::<bool>()),
    ) {
        let mut other = slices.clone();
        if !other.is_empty() {
            let turn = turn % other.len();
            other.rotate_left(turn);
        }
        if reverse {
            other.iter_mut().for_each(|slice| slice.endpoints.reverse());
        }
        let (slices, other): (Vec<_>, Vec<_>) = (slices.iter().collect(), other.iter().collect());
        prop_assert_eq!(served_ports(&service, &slices, &node), served_ports(&service, &other, &node));
        prop_assert_eq!(health_check(&service, &slices, &node), health_check(&service, &other, &node));
    }

    #[test]
    fn without_hints_local_backends_are_cluster_backends(
        service in some_service(), mut slices in some_slices(), node in some_node(),
    ) {
        for endpoint in slices.iter_mut().flat_map(|slice| &mut slice.endpoints) {
            endpoint.hints = None;
            // A terminating endpoint may be the best one here and not elsewhere.
            endpoint.is_terminating = false;
        }
        let slices: Vec<_> = slices.iter().collect();
        for port in served_ports(&service, &slices, &node).iter().filter(|port| !port.cluster.is_empty()) {
            prop_assert!(port.local.iter().all(|backend| port.cluster.contains(backend)), "{:?}", port);
        }
    }

    #[test]
    fn local_endpoints_are_those_of_the_health_check(
        service in some_service(), mut slices in some_slices(), node in some_node(),
    ) {
        for slice in &mut slices {
            slice.ports = vec![endpoint_port("http", Protocol::Tcp, 8080)];
            slice.endpoints.iter_mut().for_each(|endpoint| endpoint.is_serving = endpoint.is_ready);
        }
        let slices: Vec<_> = slices.iter().collect();
        let health = health_check(&service, &slices, &node);
        for port in served_ports(&service, &slices, &node) {
            let is_local = |frontend: &Frontend| frontend.outside == Some(Answer::Local);
            if port.protocol == Protocol::Tcp && port.frontends.iter().any(is_local) {
                let counted = health.as_ref().map(|health| health.local_ready[&port.family]);
                prop_assert_eq!(counted, Some(port.local.len()));
            }
        }
    }
}
