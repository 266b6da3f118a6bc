//! The cost of a packet in each program alone: runs `agent/benches/programs.rs` and prints a table.

use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tabled::Table;
use tabled::settings::Style;

use crate::bench::record::markdown;
use crate::{build, run};

/// The bench's results for a kind of packet, as far as the table shows them.
#[derive(Deserialize)]
struct Cost {
    program: String,
    kind: String,
    ns: f64,
    ns_least: f64,
    ns_most: f64,
    helper_calls: u64,
    map_lookups: u64,
}

#[derive(tabled::Tabled)]
struct Row {
    program: String,
    packet: String,
    ns: String,
    #[tabled(rename = "least–most")]
    range: String,
    #[tabled(rename = "helper calls")]
    helper_calls: u64,
    #[tabled(rename = "map lookups")]
    map_lookups: u64,
}

/// Sends this number of packets of each kind and prints their costs. With a folder, also writes
/// `programs.json` and `programs.md` there.
pub(crate) fn measure(packets: NonZeroU32, folder: Option<&Path>) -> Result<()> {
    build::for_tests()?;
    let packets = packets.to_string();
    let bench =
        ["bench", "--profile", "dev", "-p", "podwire", "--bench", "programs", "--", "--runs", &packets];
    let json =
        run::step("measure the programs", || run::captured(run::cargo(&bench).stderr(Stdio::inherit())))?;
    let table = table(&json)?;
    println!("{}", table.clone().with(Style::sharp()));
    if let Some(folder) = folder {
        let write = || {
            fs::create_dir_all(folder)?;
            fs::write(folder.join("programs.json"), &json)?;
            fs::write(folder.join("programs.md"), markdown(table))
        };
        write().with_context(|| format!("write the results to {}", folder.display()))?;
        println!("programs.json and programs.md are in {}", folder.display());
    }
    Ok(())
}

fn table(json: &str) -> Result<Table> {
    let costs: Vec<Cost> = serde_json::from_str(json).context("decode what the bench says")?;
    Ok(Table::new(costs.into_iter().map(Row::from)))
}

impl From<Cost> for Row {
    fn from(cost: Cost) -> Self {
        Self {
            program: cost.program,
            packet: cost.kind,
            ns: format!("{:.0}", cost.ns),
            range: format!("{:.0}–{:.0}", cost.ns_least, cost.ns_most),
            helper_calls: cost.helper_calls,
            map_lookups: cost.map_lookups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_packet_is_a_line() {
        let json = r#"[{"program": "from_pod", "kind": "same node, UDP", "runs": 11, "ns": 231.6, "ns_least": 228.4,
            "ns_most": 240.5, "instructions": 5000, "helper_calls": 4, "map_lookups": 1, "calls": {"redirect_peer": 1}}]"#;
        let markdown = markdown(table(json).unwrap());
        let lines: Vec<Vec<_>> =
            markdown.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        assert_eq!(
            lines[0],
            ["", "program", "packet", "ns", "least–most", "helper calls", "map lookups", ""]
        );
        assert!(lines[1][1..7].iter().all(|cell| cell.chars().all(|letter| letter == '-')));
        assert_eq!(lines[2], ["", "from_pod", "same node, UDP", "232", "228–240", "4", "1", ""]);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_no_list_of_costs_is_refused() {
        assert!(table("{}").is_err());
    }
}
