//! Results, for `results.json`, the table and the charts.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tabled::settings::Style;
use tabled::{Table, Tabled};

use crate::bench::chart::Chart;
use crate::bench::site::Family;
use crate::bench::statistics::short;
use crate::bench::statistics::{interquartile_range, median};

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    /// The figure's name in the list of targets; with `ipv6-` before it for IPv6.
    pub(crate) figure: String,
    /// The family of the pods' addresses. `None` if the figure compares both.
    pub(crate) family: Option<Family>,
    /// Median of Podwire.
    pub(crate) ours: f64,
    /// Median of the contestant that Podwire is compared with. `None` if there is only a target.
    pub(crate) reference: Option<f64>,
    /// Median without any pod network.
    pub(crate) limit: Option<f64>,
    /// The median of the rounds' ratios. The target applies to this value.
    pub(crate) ratio: f64,
    pub(crate) target: Option<Target>,
    /// Whether the ratio meets the target. `None` without a target.
    pub(crate) met: Option<bool>,
    /// The unit of `ours`, `reference` and `limit`.
    pub(crate) unit: &'static str,
    pub(crate) rounds: usize,
    /// Interquartile range of the rounds' ratios.
    pub(crate) spread: f64,
    /// The terms of the ratio.
    pub(crate) ratio_of: String,
}

impl Record {
    /// Makes a record of values without a reference, one for each round. They are compared with
    /// `most`, the largest value that meets the target. Without `most` there is no target.
    pub(crate) fn alone(figure: &str, unit: &'static str, values: &[f64], most: Option<f64>) -> Self {
        let ratios: Vec<f64> = values.iter().map(|value| value / most.unwrap_or(1.0)).collect();
        let (ratio, target) = (median(&ratios), most.map(|_| Target::AtMost(1.0)));
        Self {
            figure: figure.to_owned(),
            family: None,
            ours: median(values),
            reference: None,
            limit: None,
            ratio,
            target,
            met: target.map(|target| target.is_met(ratio)),
            unit,
            rounds: values.len(),
            spread: interquartile_range(&ratios),
            ratio_of: match most {
                Some(most) => format!("measured ÷ {most} {unit}"),
                None => "measured".to_owned(),
            },
        }
    }
}

impl Record {
    /// Makes a record of values that should be close to `asked`, one for each round.
    pub(crate) fn beside(
        figure: &str,
        unit: &'static str,
        values: &[f64],
        asked: f64,
        target: Target,
    ) -> Self {
        let ratios: Vec<f64> = values.iter().map(|value| value / asked).collect();
        let ratio = median(&ratios);
        Self {
            figure: figure.to_owned(),
            family: None,
            ours: median(values),
            reference: Some(asked),
            limit: None,
            ratio,
            target: Some(target),
            met: Some(target.is_met(ratio)),
            unit,
            rounds: values.len(),
            spread: interquartile_range(&ratios),
            ratio_of: "measured ÷ asked for".to_owned(),
        }
    }
}

/// The range of a ratio that meets the target.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Between(f64, f64),
}

impl Target {
    pub(crate) fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
            Self::Between(least, most) => (least..=most).contains(&ratio),
        }
    }
}

/// All results of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) records: Vec<Record>,
    pub(crate) charts: Vec<Chart>,
}

impl Report {
    /// Adds the results of a measurement with addresses of this family, or with both families.
    pub(crate) fn add(&mut self, mut measured: Self, family: Option<Family>) {
        for record in &mut measured.records {
            record.family = family;
        }
        if family == Some(Family::Ipv6) {
            let records = measured.records.iter_mut().map(|record| &mut record.figure);
            for figure in records.chain(measured.charts.iter_mut().map(|chart| &mut chart.figure)) {
                figure.insert_str(0, "ipv6-");
            }
        }
        self.records.append(&mut measured.records);
        self.charts.append(&mut measured.charts);
    }

    /// Returns the results as a table for people.
    pub(crate) fn table(&self) -> String {
        self.rows().with(Style::sharp()).to_string()
    }

    fn rows(&self) -> Table {
        Table::new(self.records.iter().map(Row::of))
    }

    /// Writes `results.json`, the table as `results.md`, and a chart for each figure.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut text = serde_json::to_string_pretty(&self.records)?;
        text.push('\n');
        fs::write(folder.join("results.json"), text)?;
        fs::write(folder.join("results.md"), markdown(self.rows()))?;
        for chart in &self.charts {
            chart.write(folder).with_context(|| format!("draw {}", chart.figure))?;
        }
        Ok(())
    }
}

#[derive(Tabled)]
struct Row {
    figure: String,
    ours: String,
    reference: String,
    limit: String,
    unit: &'static str,
    ratio: String,
    spread: String,
    target: String,
    met: &'static str,
}

impl Row {
    fn of(record: &Record) -> Self {
        let optional = |value: Option<f64>| value.map(short).unwrap_or_default();
        Self {
            figure: record.figure.clone(),
            ours: short(record.ours),
            reference: optional(record.reference),
            limit: optional(record.limit),
            unit: record.unit,
            ratio: format!("{:.3}", record.ratio),
            spread: format!("{:.3}", record.spread),
            target: match record.target {
                Some(Target::AtMost(most)) => format!("≤ {most}"),
                Some(Target::AtLeast(least)) => format!("≥ {least}"),
                Some(Target::Between(least, most)) => format!("{least}–{most}"),
                None => String::new(),
            },
            met: match record.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            },
        }
    }
}

/// Returns a table in Markdown.
pub(crate) fn markdown(mut table: Table) -> String {
    format!("{}\n", table.with(Style::markdown()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_nothing_beside_it_is_compared_with_its_target() {
        let record = Record::alone("agent-rss", "MB", &[10.0, 30.0, 20.0], Some(40.0));
        assert_eq!((record.ours, record.ratio, record.met), (20.0, 0.5, Some(true)));
        assert_eq!(Record::alone("agent-rss", "MB", &[44.0], Some(40.0)).met, Some(false));
        assert_eq!(Record::alone("agent-maps", "MB", &[44.0], None).met, None);
    }

    #[test]
    fn ipv4_figures_keep_their_names_and_ipv6_figures_are_apart() {
        let mut report = Report::default();
        for family in [Some(Family::Ipv4), Some(Family::Ipv6), None] {
            let chart = Chart { figure: "rr".to_owned(), unit: "µs", bars: Vec::new() };
            let records = vec![Record::alone("rr", "µs", &[1.0], None)];
            report.add(Report { records, charts: vec![chart] }, family);
        }
        let written = serde_json::to_value(&report.records).unwrap();
        let written = written.as_array().unwrap().iter();
        let written: Vec<_> =
            written.map(|record| (record["figure"].as_str().unwrap(), &record["family"])).collect();
        let expected = [("rr", json!("ipv4")), ("ipv6-rr", json!("ipv6")), ("rr", json!(null))];
        assert_eq!(written, expected.each_ref().map(|(figure, family)| (*figure, family)));
        assert!(report.charts.iter().map(|chart| &*chart.figure).eq(["rr", "ipv6-rr", "rr"]));
    }

    #[test]
    fn a_target_has_two_sides() {
        assert!(Target::AtMost(0.3).is_met(0.3) && !Target::AtMost(0.3).is_met(0.31));
        assert!(Target::AtLeast(1.4).is_met(1.4) && !Target::AtLeast(1.4).is_met(1.39));
        let near = Target::Between(0.95, 1.05);
        assert!([0.95, 1.05].iter().all(|ratio| near.is_met(*ratio)));
        assert!(![0.949, 1.051].iter().any(|ratio| near.is_met(*ratio)));
    }
}
