//! Comparisons of contestants that take turns.

use anyhow::{Context as _, Result};

use crate::bench::Effort;
use crate::bench::chart::{Bar, Chart};
use crate::bench::record::{Record, Report, Target};
use crate::bench::statistics::{interquartile_range, median, quantile};

/// A contestant: its name, and one turn, which measures all quantities at once.
pub(crate) struct Contestant<'a, const QUANTITIES: usize> {
    name: String,
    turn: Box<dyn FnMut() -> Result<[f64; QUANTITIES]> + 'a>,
}

impl<'a, const QUANTITIES: usize> Contestant<'a, QUANTITIES> {
    pub(crate) fn new(name: &str, turn: impl FnMut() -> Result<[f64; QUANTITIES]> + 'a) -> Self {
        Self { name: name.to_owned(), turn: Box::new(turn) }
    }
}

/// One quantity for each contestant, round by round.
pub(crate) struct Comparison {
    figure: String,
    unit: &'static str,
    names: Vec<String>,
    /// Values by contestant, then by round.
    values: Vec<Vec<f64>>,
}

/// The terms of a ratio.
#[derive(Clone, Copy)]
pub(crate) enum Ratio<'a> {
    /// The cost that each contestant adds to the limit.
    AddedTo(&'a str),
    /// The cost that each contestant adds to its own limit.
    EachAddedTo { ours: &'a str, reference: &'a str },
    /// The values themselves.
    Plain,
}

impl Comparison {
    /// Runs all rounds, and returns a comparison for each figure. In each round every contestant
    /// has one turn; every second round has the reverse order.
    ///
    /// The first round does not count: it warms caches, neighbour entries and tables of flows.
    pub(crate) fn run_all<const QUANTITIES: usize>(
        figures: [(&str, &'static str); QUANTITIES],
        effort: Effort,
        mut contestants: Vec<Contestant<'_, QUANTITIES>>,
    ) -> Result<[Self; QUANTITIES]> {
        let names: Vec<String> = contestants.iter().map(|contestant| contestant.name.clone()).collect();
        let mut comparisons = figures.map(|(figure, unit)| Self {
            figure: figure.to_owned(),
            unit,
            names: names.clone(),
            values: vec![Vec::new(); names.len()],
        });
        for round in 0..=effort.rounds {
            let mut order: Vec<usize> = (0..contestants.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for index in order {
                let contestant = &mut contestants[index];
                let values = (contestant.turn)()
                    .with_context(|| format!("{}: measure {}", comparisons[0].figure, contestant.name))?;
                if round > 0 {
                    for (comparison, value) in comparisons.iter_mut().zip(values) {
                        comparison.values[index].push(value);
                    }
                }
            }
        }
        Ok(comparisons)
    }

    /// Makes a comparison from values that were measured already: names of contestants, and their
    /// values round by round.
    pub(crate) fn of_rounds(figure: &str, unit: &'static str, contestants: Vec<(&str, Vec<f64>)>) -> Self {
        let (names, values) = contestants.into_iter().map(|(name, values)| (name.to_owned(), values)).unzip();
        Self { figure: figure.to_owned(), unit, names, values }
    }

    /// Adds the comparison of two contestants to the report.
    pub(crate) fn record(
        &self,
        figure: &str,
        ours: &str,
        reference: &str,
        ratio: Ratio<'_>,
        target: Option<Target>,
        report: &mut Report,
    ) -> Result<()> {
        let limits = match ratio {
            Ratio::AddedTo(limit) => Some([limit, limit]),
            Ratio::EachAddedTo { ours, reference } => Some([ours, reference]),
            Ratio::Plain => None,
        };
        let limit_values = match limits {
            Some([ours, reference]) => Some([self.of(ours)?, self.of(reference)?]),
            None => None,
        };
        let (ours_values, reference_values) = (self.of(ours)?, self.of(reference)?);
        let ratios: Vec<f64> = (0..ours_values.len())
            .map(|round| {
                let [ours, reference] = limit_values.map_or([0.0; 2], |both| both.map(|limit| limit[round]));
                (ours_values[round] - ours) / (reference_values[round] - reference)
            })
            .collect();
        let median_ratio = median(&ratios);
        report.records.push(Record {
            figure: figure.to_owned(),
            family: None,
            ours: median(ours_values),
            reference: Some(median(reference_values)),
            limit: limit_values.map(|[limit, _]| median(limit)),
            ratio: median_ratio,
            target,
            met: target.map(|target| target.is_met(median_ratio)),
            unit: self.unit,
            rounds: ratios.len(),
            spread: interquartile_range(&ratios),
            ratio_of: match limits {
                Some([limit, other]) => format!("({ours} − {limit}) ÷ ({reference} − {other})"),
                None => format!("{ours} ÷ {reference}"),
            },
        });
        Ok(())
    }

    /// Returns the chart: the median and the quartiles of every contestant.
    pub(crate) fn chart(&self) -> Chart {
        let bars = self.names.iter().zip(&self.values).map(|(name, values)| Bar {
            name: name.clone(),
            median: median(values),
            quartiles: (quantile(values, 0.25), quantile(values, 0.75)),
        });
        Chart { figure: self.figure.clone(), unit: self.unit, bars: bars.collect() }
    }

    fn of(&self, name: &str) -> Result<&[f64]> {
        let index = self.names.iter().position(|known| known == name);
        let index = index.with_context(|| format!("{}: there is no contestant {name}", self.figure))?;
        Ok(&self.values[index])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EFFORT: Effort = Effort { rounds: 7, turn: Duration::ZERO };

    #[test]
    fn the_ratio_is_taken_round_by_round() {
        // The machine becomes slower for all contestants. The ratio of the added costs must not
        // change.
        let slower = |by: f64| {
            let mut turn = 0.0;
            move || {
                turn += 1.0;
                Ok([by * turn])
            }
        };
        let contestants = vec![
            Contestant::new("limit", slower(2.0)),
            Contestant::new("ours", slower(3.0)),
            Contestant::new("reference", slower(6.0)),
        ];
        let [comparison] = Comparison::run_all([("figure", "µs")], EFFORT, contestants).unwrap();
        let mut report = Report::default();
        let target = Some(Target::AtMost(0.3));
        comparison
            .record("figure", "ours", "reference", Ratio::AddedTo("limit"), target, &mut report)
            .unwrap();
        let record = &report.records[0];
        assert_eq!((record.ratio, record.spread, record.rounds), (0.25, 0.0, 7));
        // The first round does not count: these are the medians of turns 2 to 8.
        assert_eq!((record.ours, record.limit), (15.0, Some(10.0)));
        assert_eq!(record.met, Some(true));
    }

    #[test]
    fn each_cost_can_be_taken_above_a_limit_of_its_own() {
        let values = [("limit 4", 2.0), ("limit 6", 3.0), ("ipv4", 4.0), ("ipv6", 8.0)];
        let rounds = values.map(|(name, value)| (name, vec![value; 7])).to_vec();
        let comparison = Comparison::of_rounds("figure", "µs", rounds);
        let mut report = Report::default();
        let each = Ratio::EachAddedTo { ours: "limit 6", reference: "limit 4" };
        comparison.record("figure", "ipv6", "ipv4", each, None, &mut report).unwrap();
        let record = &report.records[0];
        assert_eq!((record.ratio, record.limit), (2.5, Some(3.0)));
        assert_eq!(record.ratio_of, "(ipv6 − limit 6) ÷ (ipv4 − limit 4)");
    }
}
