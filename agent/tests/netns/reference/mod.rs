//! The same clients with Podwire and with the reference plugins: `bridge` with `host-local` and
//! `portmap`, and plain routes between nodes.
//!
//! Prints which network passes which case. The reference plugins' results are only reported.
//! Podwire must pass every case.

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

/// The outcomes of the cases on one network. An error says why a case failed.
type Column = Vec<Result<(), String>>;

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
    for (case, outcome) in ours.iter().flat_map(|column| cases.iter().zip(column)) {
        assert_eq!(outcome, &Ok(()), "{}", case.name);
    }
    for column in reference {
        assert!(
            passed(column) * 3 >= cases.len(),
            "the reference plugins fail nearly every case: their setup may be wrong"
        );
    }
}

/// Runs all cases on one network, one after the other.
fn column(network: Network, cases: &[Case]) -> Column {
    let cluster = Cluster::new(network).unwrap_or_else(|error| panic!("{}: {error:#}", network.name()));
    let run = |case: &Case| match (case.run)(&cluster) {
        Ok(()) => Ok(()),
        Err(Fault::Wrong(reason)) => Err(reason),
        Err(Fault::SetUp(error)) => panic!("{}: {} cannot be tried: {error:#}", network.name(), case.name),
    };
    cases.iter().map(run).collect()
}

fn passed(column: &Column) -> usize {
    column.iter().filter(|outcome| outcome.is_ok()).count()
}

/// Returns the table as the documentation has it.
fn table(cases: &[Case], columns: &[Column]) -> String {
    let mut rows = vec![["case"].into_iter().chain(NETWORKS.map(Network::name)).map(str::to_owned).collect()];
    for (number, case) in cases.iter().enumerate() {
        let shown = columns.iter().map(|column| match &column[number] {
            Ok(()) => "pass".to_owned(),
            Err(reason) => format!("FAIL: {reason}"),
        });
        rows.push([case.name.clone()].into_iter().chain(shown).collect());
    }
    let sums = columns.iter().map(|column| format!("{} of {}", passed(column), cases.len()));
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
