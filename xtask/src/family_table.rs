//! The paths that tests have checked, by family. Tests record each path, and `cargo xtask test`
//! prints the table after their layer.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::IpAddr;
use std::panic::Location;

use anyhow::{Context as _, Result};
use tabled::builder::Builder;
use tabled::settings::Style;

use crate::lab::Lab;

/// The variable that names the file of records. Without it nothing is recorded.
pub const FILE: &str = "PODWIRE_FAMILY_TABLE";

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// Paths that have one family only: the beginning of their names, and the reason.
const ONE_FAMILY: &[(&str, &str)] = &[
    ("ipv6_router, ", "the path is that of IPv4 by an IPv6 router"),
    (
        "kube_proxy/first_family, ",
        "Kubernetes gives the services of API server and DNS the cluster's first family only",
    ),
];

/// Records that a path is checked with a destination of this family. The path's name begins with
/// the caller's source file and the lab's mode.
///
/// # Errors
/// When the file cannot be written.
#[track_caller]
pub fn record(lab: &Lab, path: &str, destination: IpAddr) -> Result<()> {
    let Some(file) = std::env::var_os(FILE) else { return Ok(()) };
    let family = FAMILIES[usize::from(destination.is_ipv6())];
    // A lab's name differs from run to run.
    let path = path.replace(&format!("{}-", lab.name()), "");
    let area = area(Location::caller().file());
    let line = format!("{family}\t{area}, {}: {path}\n", lab.mode().name());
    let opened = OpenOptions::new().create(true).append(true).open(&file);
    // Several threads append to the file, so write the line at once.
    let written = opened.and_then(|mut file| file.write_all(line.as_bytes()));
    written.with_context(|| format!("append to {}", file.display()))
}

/// Returns the name of a test's source file without the folder of its layer.
fn area(file: &str) -> &str {
    let name = file.rsplit_once("tests/netns/").map_or(file, |(_, name)| name);
    name.strip_suffix(".rs").unwrap_or(name)
}

/// Paths, and how often each family's path was checked.
#[derive(Debug, Default)]
pub struct Table {
    paths: BTreeMap<String, [usize; FAMILIES.len()]>,
}

impl Table {
    /// Reads the file of records.
    pub fn parse(records: &str) -> Self {
        let mut table = Self::default();
        for (family, path) in records.lines().filter_map(|line| line.split_once('\t')) {
            if let Some(column) = FAMILIES.iter().position(|known| *known == family) {
                table.paths.entry(path.to_owned()).or_default()[column] += 1;
            }
        }
        table
    }

    /// Returns whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Returns a line for each path that lacks a family without a reason, and for each reason that
    /// no path needs. All tests must have run.
    pub fn faults(&self) -> Vec<String> {
        self.faults_beside(ONE_FAMILY)
    }

    fn faults_beside(&self, reasons: &[(&str, &str)]) -> Vec<String> {
        let of_one_family = || self.paths.iter().filter(|(_, counts)| counts.contains(&0));
        let unexplained = of_one_family().filter(|(path, _)| reason(reasons, path).is_none());
        let missing = unexplained.map(|(path, counts)| {
            let lacking = FAMILIES.iter().zip(counts).filter(|(_, count)| **count == 0);
            let lacking: Vec<&str> = lacking.map(|(family, _)| *family).collect();
            format!("{path}: not checked with {}", lacking.join(", "))
        });
        let unneeded =
            reasons.iter().filter(|(begin, _)| !of_one_family().any(|(path, _)| path.starts_with(begin)));
        let unneeded = unneeded.map(|(begin, _)| {
            format!("{begin:?} in ONE_FAMILY of xtask/src/family_table.rs: no such path lacks a family")
        });
        missing.chain(unneeded).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Builder::default();
        table.push_record(["path"].into_iter().chain(FAMILIES).chain(["one family only, because"]));
        for (path, counts) in &self.paths {
            let is_whole = !counts.contains(&0);
            let reason = reason(ONE_FAMILY, path).filter(|_| !is_whole).unwrap_or_default();
            let counts = counts.map(|count| count.to_string());
            table.push_record([path.clone()].into_iter().chain(counts).chain([reason.to_owned()]));
        }
        write!(f, "{}", table.build().with(Style::sharp()))
    }
}

fn reason<'a>(reasons: &[(&str, &'a str)], path: &str) -> Option<&'a str> {
    reasons.iter().find(|(begin, _)| path.starts_with(begin)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: &str = "IPv4\tpaths, vxlan: pods\nIPv6\tpaths, vxlan: pods\nIPv4\tpaths, vxlan: pods\nIPv4\tlinks, direct: renamed\nIPv6\tmtu, vxlan: too big\n";

    #[test]
    fn a_path_of_one_family_needs_a_reason() {
        let table = Table::parse(RECORDS);
        let [links, mtu] = [("links, ", "the kernel's list has IPv4 only"), ("mtu, vxlan: too", "…")];
        assert_eq!(table.faults_beside(&[links, mtu]), [""; 0]);
        assert_eq!(table.faults_beside(&[links]), ["mtu, vxlan: too big: not checked with IPv4"]);
        assert_eq!(table.faults_beside(&[mtu]), ["links, direct: renamed: not checked with IPv6"]);
    }

    #[test]
    fn a_reason_that_no_path_needs_is_a_fault() {
        let reasons = [("links", "…"), ("mtu", "…"), ("paths", "…"), ("world", "…")];
        let faults = Table::parse(RECORDS).faults_beside(&reasons);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].starts_with("\"paths\"") && faults[1].starts_with("\"world\""), "{faults:?}");
    }

    #[test]
    fn the_table_counts_rows_of_each_family() {
        let shown = Table::parse(RECORDS).to_string();
        let row = shown.lines().find(|line| line.contains("paths")).unwrap();
        let cells: Vec<&str> = row.split('│').map(str::trim).collect();
        assert_eq!(cells[1..4], ["paths, vxlan: pods", "2", "1"]);
    }

    #[test]
    fn an_area_is_a_source_file_below_the_layers_folder() {
        assert_eq!(area("agent/tests/netns/snat/load.rs"), "snat/load");
        assert_eq!(area("agent/tests/netns/paths.rs"), "paths");
    }
}
