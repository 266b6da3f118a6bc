//! Why endpoints are used or not.

use super::super::{Answer, Candidacy, candidacies, served_ports};
use super::*;

/// Returns the reasons for the policies `Cluster` and `Local`, by the order of the addresses.
fn uses(endpoints: &[&str], zone: Option<&str>) -> Vec<[&'static str; 2]> {
    let (slice, node) = (slice(endpoints), ThisNode { zone: zone.map(Into::into), ..node() });
    let ports = served_ports(&service(), &[&slice], &node);
    let names = |candidacy: &Candidacy<'_>| {
        [Answer::Cluster, Answer::Local].map(|answer| candidacy.of(answer).name())
    };
    candidacies(&[&slice], &ports[0], &node).iter().map(names).collect()
}

#[test]
fn each_endpoint_has_its_reason() {
    for (endpoints, zone, wanted) in [
        (
            &["1 ready here", "2 ready", "3", "4 here", "5 serving terminating"][..],
            None,
            &[
                ["ready", "ready"],
                ["ready", "not-local"],
                ["not-ready", "not-ready"],
                ["not-ready", "not-ready"],
                ["terminating", "terminating"],
            ][..],
        ),
        (
            &["1 serving terminating here", "2 serving terminating", "3 terminating"],
            None,
            &[["last-resort", "last-resort"], ["last-resort", "terminating"], ["terminating", "terminating"]],
        ),
        (
            &["1 ready zone-a", "2 ready zone-b here", "3 zone-b"],
            Some("zone-a"),
            &[["ready", "not-local"], ["other-zone", "ready"], ["not-ready", "not-ready"]],
        ),
        (
            &["1 ready zone-a node-1", "2 ready zone-a node-2"],
            Some("zone-a"),
            &[["ready", "not-local"], ["other-node", "not-local"]],
        ),
        // One has no hint, so hints do not count.
        (&["1 ready zone-a", "2 ready"], Some("zone-b"), &[["ready", "not-local"], ["ready", "not-local"]]),
    ] {
        assert_eq!(uses(endpoints, zone), wanted, "{endpoints:?}");
    }
}
