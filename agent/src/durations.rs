//! How long calls of the plugin, node lists and comparisons with the kernel take.

use std::time::Duration;

use podwire_cni::protocol::{Call, Reply, codes};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds of the buckets, in seconds. An ADD takes some milliseconds; runtimes give up after
/// a minute or more.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 5., 10., 30.];

/// Names of the calls.
const VERBS: [&str; 6] = ["add", "propose", "del", "check", "status", "gc"];
/// Names of the outcomes of calls. There are few, so the metric has few series.
#[cfg(test)]
pub(crate) const OUTCOMES: [&str; 9] = [
    OK,
    FAILED,
    GIVEN_UP,
    "check-failed",
    "host-port-taken",
    "no-address",
    "refused",
    "try-again-later",
    "unavailable",
];
const OK: &str = "ok";
const FAILED: &str = "failed";
/// The outcome of a call that the plugin no longer waits for.
pub(crate) const GIVEN_UP: &str = "given-up";

/// Histograms by `N` labels.
pub(crate) type Timed<const N: usize> = Family<[(&'static str, &'static str); N], Histogram>;

/// Histograms of durations. All clones share the counts.
#[derive(Clone, Debug)]
pub struct Durations {
    /// Calls of the plugin, by verb and outcome.
    pub(crate) calls: Timed<2>,
    /// Node lists, by outcome.
    pub(crate) node_lists: Timed<1>,
    /// Comparisons with the kernel, by outcome.
    pub(crate) reconciles: Timed<1>,
}

impl Default for Durations {
    /// Counts nothing yet. The usual series exist from the start: Prometheus computes no rate
    /// across the first appearance of a series.
    fn default() -> Self {
        let durations = Self { calls: timed(), node_lists: timed(), reconciles: timed() };
        for verb in VERBS {
            drop(durations.calls.get_or_create(&call_labels(verb, OK)));
        }
        for outcome in [OK, FAILED] {
            drop(durations.node_lists.get_or_create(&[("outcome", outcome)]));
            drop(durations.reconciles.get_or_create(&[("outcome", outcome)]));
        }
        durations
    }
}

impl Durations {
    /// Notes a call of the plugin.
    pub(crate) fn note_call(&self, verb: &'static str, outcome: &'static str, took: Duration) {
        self.calls.get_or_create(&call_labels(verb, outcome)).observe(took.as_secs_f64());
    }

    /// Notes a node list. It is applied if the kernel holds what follows from it.
    pub(crate) fn note_node_list(&self, is_applied: bool, took: Duration) {
        note(&self.node_lists, is_applied, took);
    }

    /// Notes a comparison of the kernel with what is wanted.
    pub(crate) fn note_reconcile(&self, is_ok: bool, took: Duration) {
        note(&self.reconciles, is_ok, took);
    }
}

/// Returns the name of a call.
pub(crate) fn verb(call: &Call) -> &'static str {
    let [add, propose, del, check, status, gc] = VERBS;
    match call {
        Call::Add(_) => add,
        Call::Propose(_) => propose,
        Call::Del(_) => del,
        Call::Check(_) => check,
        Call::Status => status,
        Call::Gc(_) => gc,
    }
}

/// Returns the name of a call's outcome, one of [`OUTCOMES`].
pub(crate) fn outcome(reply: &Reply) -> &'static str {
    let Reply::Failed(failure) = reply else { return OK };
    match failure.code {
        codes::TRY_AGAIN_LATER => "try-again-later",
        codes::UNAVAILABLE | codes::UNAVAILABLE_AND_LIMITED => "unavailable",
        codes::ADDRESSES_EXHAUSTED | codes::ADDRESS_UNAVAILABLE => "no-address",
        codes::HOST_PORT_UNAVAILABLE => "host-port-taken",
        codes::CHECK_FAILED => "check-failed",
        codes::IO_FAILURE | codes::NETLINK_FAILURE | codes::AGENT_FAILURE => FAILED,
        _ => "refused",
    }
}

fn timed<const N: usize>() -> Timed<N> {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}

fn note(durations: &Timed<1>, is_ok: bool, took: Duration) {
    let outcome = if is_ok { OK } else { FAILED };
    durations.get_or_create(&[("outcome", outcome)]).observe(took.as_secs_f64());
}

fn call_labels(verb: &'static str, outcome: &'static str) -> [(&'static str, &'static str); 2] {
    [("verb", verb), ("outcome", outcome)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use podwire_cni::protocol::Failure;

    #[test]
    fn outcomes_of_calls_are_few() {
        let failed = |code| outcome(&Reply::Failed(Failure { code, message: String::new() }));
        assert_eq!(outcome(&Reply::Deleted), "ok");
        assert_eq!(failed(codes::TRY_AGAIN_LATER), "try-again-later");
        assert_eq!(failed(codes::AGENT_FAILURE), "failed");
        let all: std::collections::BTreeSet<_> = (0..1000).map(failed).collect();
        assert_eq!(all.len(), 7, "{all:?}");
        assert!(all.iter().all(|name| OUTCOMES.contains(name)), "{all:?}");
    }
}
