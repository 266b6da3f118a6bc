//! `docs/metrics.md`, made from the registry. `cargo xtask docs` asks this test to write it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::tests::figures;
use super::{Process, open_metrics};

const DOCUMENT: &str = "../docs/metrics.md";
/// The variable that makes this test write the document instead of comparing it.
const WRITE: &str = "PODWIRE_WRITE_DOCS";
/// Labels with values that the page lists: they are few and do not depend on the node.
const LISTED: [&str; 4] = ["kind", "outcome", "verb", "what"];
const HEAD: &str = "\
# Metrics

<!-- Written by `cargo xtask docs` from the agent's registry. -->

For operators who read `/metrics`, by hand or with Prometheus.
[operate.md](operate.md#metrics) says how Prometheus reaches it. Each agent counts for its own node.
The counters of dropped and forwarded packets go on when an agent is replaced. All others begin
again with the agent.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
";
const LABELS: &str = "
## Labels

| label | values |
|---|---|
| `condition`, `severity` | names and severities of [conditions](operate.md#conditions) |
| `path` | [paths](drop-reasons.md#paths) that packets take |
| `reason` | [reasons](drop-reasons.md) to drop a packet; for `podwire_nodes_skipped`, [why](operate.md#nodes-that-changed-or-are-missing) a node is not used |
| `table` | a [map](../ARCHITECTURE.md#maps) of the programs |
| `where` | a place of the host's [firewall](operate.md#pods-reach-pods-but-no-service-and-not-the-world) |
";

#[derive(Default)]
struct Metric {
    kind: String,
    unit: String,
    help: String,
    labels: BTreeSet<String>,
}

/// Returns the page for the agent's metrics, as OpenMetrics describes them.
fn page(open_metrics: &str) -> String {
    let mut metrics: Vec<(String, Metric)> = Vec::new();
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in open_metrics.lines() {
        if let ["#", what, name, rest] = line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            if what == "HELP" {
                metrics.push((name.to_owned(), Metric { help: rest.to_owned(), ..Metric::default() }));
            }
            let (_, metric) = metrics.last_mut().unwrap();
            match what {
                "TYPE" => metric.kind = rest.to_owned(),
                "UNIT" => metric.unit = rest.to_owned(),
                _ => {}
            }
        } else if let Some((_, labels)) = line.split_once('{') {
            let (_, metric) = metrics.last_mut().unwrap();
            for label in labels.rsplit_once('}').unwrap().0.split("\",") {
                let (name, value) = label.split_once("=\"").unwrap();
                if name != "le" {
                    metric.labels.insert(name.to_owned());
                    values.entry(name.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
                }
            }
        }
    }
    let rows = metrics.into_iter().map(|(name, metric)| {
        let suffix = if metric.kind == "counter" { "_total" } else { "" };
        let Metric { kind, unit, help, labels } = metric;
        format!("| `{name}{suffix}` | {kind} | {unit} | {} | {help} |\n", in_code(&labels))
    });
    let listed = LISTED.map(|label| format!("| `{label}` | {} |\n", in_code(&values[label])));
    format!("{HEAD}{}{LABELS}{}", rows.collect::<String>(), listed.concat())
}

fn in_code(words: &BTreeSet<String>) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[test]
fn the_documented_metrics_are_those_of_the_registry() {
    let figures = figures();
    for outcome in crate::durations::OUTCOMES {
        figures.durations.note_call("add", outcome, std::time::Duration::ZERO);
    }
    let process = Process::read().unwrap();
    let page = page(&open_metrics(&figures, Some(&process), true).unwrap());
    let document = Path::new(DOCUMENT);
    if std::env::var_os(WRITE).is_some() {
        fs::write(document, &page).unwrap();
    }
    let there = fs::read_to_string(document).unwrap_or_default();
    assert!(there == page, "docs/metrics.md is stale: run `cargo xtask docs`");
}
