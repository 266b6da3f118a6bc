//! The same clients with Podwire and with the reference plugins: `bridge` with `host-local` and
//! `portmap`, and plain routes between nodes.
//!
//! Each case runs with IPv4 and with IPv6, on the same nodes and pods. The test prints which
//! network passes which case. Podwire must pass every case. The reference plugins may fail cases,
//! but those with IPv6 must be those with IPv4, and [`WITHOUT_IPV6`].

mod cases;
mod cluster;
mod host_port;
mod pods;
mod talk;

use std::fmt::Write as _;
use std::io::Write as _;

use xtask::lab::Mode;

use cases::{Case, cases};
use cluster::{Cluster, Network};

/// The table's columns.
const NETWORKS: [Network; 4] = [
    Network::BridgeAndPortmap,
    Network::Flannel,
    Network::Podwire(Mode::Vxlan),
    Network::Podwire(Mode::Direct),
];

/// The families, in the order of the labs.
const NAMES: [&str; 2] = ["IPv4", "IPv6"];

/// The cases that the reference plugins pass with IPv4 and fail with IPv6.
///
/// `portmap` leads a packet for `::1` to the pod, as one for 127.0.0.1. Its source stays `::1`:
/// `portmap` masquerades sources in 127.0.0.0/8 only. With `route_localnet`, which `portmap` sets,
/// those may leave the node. IPv6 has no such switch: a kernel drops a packet from `::1` that comes
/// by a link (RFC 4291 section 2.5.3). The conformance case passes, because its client is bound to
/// the node's own address.
const WITHOUT_IPV6: [&str; 2] = [
    "hostPort from the node, by its loopback address, TCP",
    "hostPort from the node, by its loopback address, UDP",
];

/// The reason why a case has failed.
#[derive(Debug)]
pub enum Fault {
    /// The case could not be tried. The test is broken, and shows no fault of a network.
    SetUp(anyhow::Error),
    /// The network did not do what it should.
    Wrong(String),
}

impl<E: Into<anyhow::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::SetUp(error.into())
    }
}

/// The outcome of a case.
pub type Outcome<T = ()> = Result<T, Fault>;

/// The outcomes of the cases on one network, for each family. An error says why a case failed.
type Column = [Vec<Result<(), String>>; 2];

/// Reports the network's fault unless a condition holds.
fn demand(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Fault::Wrong(otherwise())) }
}

#[test]
fn what_reference_plugins_pass_and_fail_passes_here() {
    let cases = cases();
    // Run the networks side by side: a failing case waits.
    let columns: [Column; 4] = std::thread::scope(|scope| {
        let cases = &cases;
        let running = NETWORKS.map(|network| scope.spawn(move || column(network, cases)));
        running.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    // Print past the test harness, which shows only the output of failed tests.
    std::io::stdout().write_all(table(&cases, &columns).as_bytes()).unwrap();
    let (reference, ours) = columns.split_at(2);
    for (family, name) in NAMES.into_iter().enumerate() {
        for (case, outcome) in ours.iter().flat_map(|column| cases.iter().zip(&column[family])) {
            assert_eq!(outcome, &Ok(()), "{}, {name}", case.name);
        }
    }
    for (column, network) in reference.iter().zip(NETWORKS) {
        assert!(
            passed(column) * 3 >= 2 * cases.len(),
            "the reference plugins fail nearly every case: their setup may be wrong"
        );
        let [with4, with6] = column;
        let differing = cases.iter().zip(with4.iter().zip(with6));
        let differing = differing.filter(|(_, (with4, with6))| with4.is_ok() != with6.is_ok());
        let differing: Vec<_> = differing.map(|(case, _)| case.name.as_str()).collect();
        assert_eq!(differing, WITHOUT_IPV6, "{}", network.name());
    }
}

/// Runs all cases on one network, one after the other, first with IPv4 and then with IPv6.
fn column(network: Network, cases: &[Case]) -> Column {
    let clusters =
        Cluster::of_each_family(network).unwrap_or_else(|error| panic!("{}: {error:#}", network.name()));
    clusters.map(|cluster| {
        let run = |case: &Case| match (case.run)(&cluster) {
            Ok(()) => Ok(()),
            Err(Fault::Wrong(reason)) => Err(reason),
            Err(Fault::SetUp(error)) => {
                let family = NAMES[cluster.family];
                panic!("{}: {} cannot be tried with {family}: {error:#}", network.name(), case.name)
            }
        };
        cases.iter().map(run).collect()
    })
}

fn passed(column: &Column) -> usize {
    column.iter().flatten().filter(|outcome| outcome.is_ok()).count()
}

/// Returns the table as the documentation has it.
fn table(cases: &[Case], columns: &[Column]) -> String {
    let mut rows = vec![["case"].into_iter().chain(NETWORKS.map(Network::name)).map(str::to_owned).collect()];
    for (family, name) in NAMES.into_iter().enumerate() {
        for (number, case) in cases.iter().enumerate() {
            let shown = columns.iter().map(|column| match &column[family][number] {
                Ok(()) => "pass".to_owned(),
                Err(reason) => format!("FAIL: {reason}"),
            });
            rows.push([format!("{}, {name}", case.name)].into_iter().chain(shown).collect());
        }
    }
    let sums = columns.iter().map(|column| format!("{} of {}", passed(column), 2 * cases.len()));
    rows.push(["passed".to_owned()].into_iter().chain(sums).collect::<Vec<_>>());
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..=NETWORKS.len()).map(width).collect();
    let mut text = "\n".to_owned();
    for (number, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ").unwrap();
        }
        text += "|\n";
        if number == 0 {
            for width in &widths {
                write!(text, "|{}", "-".repeat(width + 2)).unwrap();
            }
            text += "|\n";
        }
    }
    text
}
