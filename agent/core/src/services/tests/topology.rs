//! Which endpoints are used, case by case as in kube-proxy's own test of `CategorizeEndpoints`
//! (Kubernetes 1.36), then cases of ours. Of kube-proxy's cases one has no row: a feature gate
//! that is locked since 1.35.

use super::super::{Answer, ThisNode, TrafficPolicy, served_ports};
use super::{NODE, port, service, slice};

/// Policies of a Service for clients inside and outside. `ClusterIp…` ones have no other address
/// than a ClusterIP, the others have a NodePort, too.
#[derive(Clone, Copy, Debug)]
enum Policies {
    ClusterIpCluster,
    ClusterIpLocal,
    /// `externalTrafficPolicy: Local`, but nothing that it could hold for.
    ClusterIpExternalLocal,
    ClusterLocal,
    LocalCluster,
    LocalLocal,
}

use Policies::*;

struct Case {
    situation: &'static str,
    /// This node's zone.
    zone: Option<&'static str>,
    policies: Policies,
    endpoints: &'static [&'static str],
    /// Last numbers of the addresses that are used for the policy `Cluster`.
    cluster: &'static [u8],
    /// The same for `Local`.
    local: &'static [u8],
    /// What happens to a connection to the ClusterIP.
    answer: Answer,
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case {
        situation: "all have zone hints, and some are for this zone: those",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b", "3 ready zone-c", "4 ready zone-a"],
        cluster: &[1, 4], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "external policy Local: hints have no effect on local endpoints",
        zone: Some("zone-a"), policies: ClusterLocal,
        endpoints: &["1 ready here zone-a", "2 ready here zone-b", "3 ready zone-c", "4 ready zone-a"],
        cluster: &[1, 4], local: &[1, 2], answer: Answer::Cluster,
    },
    Case {
        situation: "internal policy Local: hints have no effect on local endpoints",
        zone: Some("zone-a"), policies: LocalCluster,
        endpoints: &["1 ready here zone-a", "2 ready here zone-b", "3 ready zone-c", "4 ready zone-a"],
        cluster: &[1, 4], local: &[1, 2], answer: Answer::Local,
    },
    Case {
        situation: "this node has no zone: zone hints do not count",
        zone: None, policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "this node's zone is empty: zone hints do not count",
        zone: Some(""), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "no hint is for this zone: zone hints do not count",
        zone: Some("zone-b"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-c"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "an endpoint for this zone is not ready: the others for this zone",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b", "3 ready zone-c", "4 zone-a"],
        cluster: &[1], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "no endpoint for this zone is ready: zone hints do not count",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 zone-a", "2 ready zone-b", "3 ready zone-c", "4 zone-a"],
        cluster: &[2, 3], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "one has no hint: zone hints do not count",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b", "3 ready", "4 ready zone-a"],
        cluster: &[1, 2, 3, 4], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "an endpoint can have hints for several zones",
        zone: Some("zone-c"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a zone-b zone-c", "2 ready zone-b zone-c", "3 ready zone-b zone-d", "4 ready zone-c"],
        cluster: &[1, 2, 4], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "all have node hints, and one is for this node: that one",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a node-1", "2 ready zone-b node-2", "3 ready zone-c node-3", "4 ready zone-a node-4"],
        cluster: &[1], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "one has no hint: neither kind counts",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a node-1", "2 ready", "3 ready zone-c node-3", "4 ready zone-a node-4"],
        cluster: &[1, 2, 3, 4], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "no node hint is for this node: zone hints",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a node-5", "2 ready zone-b node-2", "3 ready zone-c node-3", "4 ready zone-a node-4"],
        cluster: &[1, 4], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "local endpoints and those for this zone differ",
        zone: Some("zone-a"), policies: ClusterLocal,
        endpoints: &["1 ready here zone-a", "2 ready here zone-b", "3 ready zone-a", "4 ready zone-b"],
        cluster: &[1, 3], local: &[1, 2], answer: Answer::Cluster,
    },
    Case {
        situation: "internal policy Local, no endpoints",
        zone: None, policies: ClusterIpLocal,
        endpoints: &[],
        cluster: &[], local: &[], answer: Answer::Refused,
    },
    Case {
        situation: "internal policy Local, all endpoints elsewhere",
        zone: None, policies: ClusterIpLocal,
        endpoints: &["1 ready", "2 ready"],
        cluster: &[], local: &[], answer: Answer::Dropped,
    },
    Case {
        situation: "internal policy Local, all endpoints here",
        zone: None, policies: ClusterIpLocal,
        endpoints: &["1 ready here", "2 ready here"],
        cluster: &[], local: &[1, 2], answer: Answer::Local,
    },
    Case {
        situation: "internal policy Local, some endpoints here",
        zone: None, policies: ClusterIpLocal,
        endpoints: &["1 ready here", "2 ready"],
        cluster: &[], local: &[1], answer: Answer::Local,
    },
    Case {
        situation: "policy Cluster, none is ready",
        zone: None, policies: ClusterIpCluster,
        endpoints: &["1", "2"],
        cluster: &[], local: &[], answer: Answer::Refused,
    },
    Case {
        situation: "policy Cluster, some are ready",
        zone: None, policies: ClusterIpCluster,
        endpoints: &["1", "2 ready"],
        cluster: &[2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "policy Cluster, all are terminating: those that serve",
        zone: None, policies: ClusterIpCluster,
        endpoints: &["1 serving terminating here", "2 serving terminating", "3 terminating"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "internal Local, external Cluster, some endpoints here",
        zone: None, policies: LocalCluster,
        endpoints: &["1 ready here", "2 ready"],
        cluster: &[1, 2], local: &[1], answer: Answer::Local,
    },
    Case {
        situation: "internal Cluster, external Local, some endpoints here",
        zone: None, policies: ClusterLocal,
        endpoints: &["1 ready here", "2 ready"],
        cluster: &[1, 2], local: &[1], answer: Answer::Cluster,
    },
    Case {
        situation: "both Local, some endpoints here",
        zone: None, policies: LocalLocal,
        endpoints: &["1 ready here", "2 ready"],
        cluster: &[1, 2], local: &[1], answer: Answer::Local,
    },
    Case {
        situation: "both Local, all endpoints elsewhere",
        zone: None, policies: LocalLocal,
        endpoints: &["1 ready", "2 ready"],
        cluster: &[1, 2], local: &[], answer: Answer::Dropped,
    },
    Case {
        situation: "both Local, all endpoints elsewhere and terminating",
        zone: None, policies: LocalLocal,
        endpoints: &["1 serving terminating", "2 serving terminating"],
        cluster: &[1, 2], local: &[], answer: Answer::Dropped,
    },
    Case {
        situation: "internal Cluster, external Local: each looks for ready ones of its own",
        zone: None, policies: ClusterLocal,
        endpoints: &["1 ready", "2 here", "3 serving terminating here", "4 serving terminating"],
        cluster: &[1], local: &[3], answer: Answer::Cluster,
    },
    Case {
        situation: "external policy Local of a Service that is not reached from outside",
        zone: None, policies: ClusterIpExternalLocal,
        endpoints: &["1 ready", "2 ready here"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "internal policy Local of a Service that is not reached from outside",
        zone: None, policies: ClusterIpLocal,
        endpoints: &["1 ready", "2 ready here"],
        cluster: &[], local: &[2], answer: Answer::Local,
    },
    Case {
        situation: "policy Cluster, no endpoints",
        zone: None, policies: ClusterIpCluster,
        endpoints: &[],
        cluster: &[], local: &[], answer: Answer::Refused,
    },
    Case {
        situation: "the only endpoint is neither ready nor serving nor terminating",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1"],
        cluster: &[], local: &[], answer: Answer::Refused,
    },
    // Ours.
    Case {
        situation: "an endpoint that is not ready needs no hint",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a", "2 ready zone-b", "3", "4 serving terminating"],
        cluster: &[1], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "the endpoint with a hint for this node is not ready: zone hints",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 zone-a node-1", "2 ready zone-a node-2", "3 ready zone-b node-3"],
        cluster: &[2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "no node hint is for this node, and there are no zone hints: all",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready node-2", "2 ready node-3"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "one has no node hint, but all have zone hints: zone hints",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 ready zone-a node-1", "2 ready zone-a", "3 ready zone-b node-3"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "none is ready: terminating ones of all zones and nodes",
        zone: Some("zone-a"), policies: ClusterIpCluster,
        endpoints: &["1 serving terminating zone-a node-1", "2 serving terminating zone-b node-2"],
        cluster: &[1, 2], local: &[], answer: Answer::Cluster,
    },
    Case {
        situation: "ready and terminating (publishNotReadyAddresses): ready",
        zone: None, policies: ClusterLocal,
        endpoints: &["1 ready terminating here", "2 serving terminating here", "3 serving terminating"],
        cluster: &[1], local: &[1], answer: Answer::Cluster,
    },
    Case {
        situation: "serving, but neither ready nor terminating: not used",
        zone: None, policies: ClusterLocal,
        endpoints: &["1 serving here"],
        cluster: &[], local: &[], answer: Answer::Refused,
    },
    Case {
        situation: "internal policy Local, terminating endpoints elsewhere only",
        zone: None, policies: ClusterIpLocal,
        endpoints: &["1 serving terminating", "2 here"],
        cluster: &[], local: &[], answer: Answer::Dropped,
    },
];

#[test]
fn endpoints_are_used_as_kube_proxy_uses_them() {
    for case in CASES {
        let (internal, external, has_node_port) = match case.policies {
            ClusterIpCluster => (TrafficPolicy::Cluster, TrafficPolicy::Cluster, false),
            ClusterIpLocal => (TrafficPolicy::Local, TrafficPolicy::Cluster, false),
            ClusterIpExternalLocal => (TrafficPolicy::Cluster, TrafficPolicy::Local, false),
            ClusterLocal => (TrafficPolicy::Cluster, TrafficPolicy::Local, true),
            LocalCluster => (TrafficPolicy::Local, TrafficPolicy::Cluster, true),
            LocalLocal => (TrafficPolicy::Local, TrafficPolicy::Local, true),
        };
        let mut service = service();
        (service.internal_policy, service.external_policy) = (internal, external);
        service.ports[0].node_port = has_node_port.then(|| port(30080));

        let node = ThisNode { name: NODE.into(), zone: case.zone.map(Into::into), addresses: Vec::new() };
        let served = served_ports(&service, &[&slice(case.endpoints)], &node);
        let last = |backend: &super::Backend| match backend.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(address) => panic!("{address}"),
        };
        let cluster: Vec<_> = served[0].cluster.iter().map(last).collect();
        let local: Vec<_> = served[0].local.iter().map(last).collect();
        let answer = served[0].frontends[0].inside;
        assert_eq!(
            (cluster.as_slice(), local.as_slice(), answer),
            (case.cluster, case.local, case.answer),
            "{}",
            case.situation
        );
    }
}
