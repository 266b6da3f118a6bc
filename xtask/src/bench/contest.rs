//! Measurements at any set of sites.

use anyhow::Result;

use crate::bench::Effort;
use crate::bench::client::{RoundTrips, Stream, Transport, packets_per_second};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Report, Target};
use crate::bench::site::{LIMIT, Site};

/// The length of a stream in turns: a stream needs time to reach its rate.
const STREAM_TURNS: u32 = 5;

/// Latency of one direction, and the core's busy time for a request and its response together.
pub(crate) struct Latencies {
    /// One-way latency, µs.
    pub(crate) one_way: Comparison,
    /// Busy time of a round trip, µs.
    pub(crate) cpu: Comparison,
}

pub(crate) fn round_trips(
    figure: &str,
    transport: Transport,
    sites: &[Site],
    effort: Effort,
) -> Result<Latencies> {
    let pairs: Result<Vec<RoundTrips<'_>>> =
        sites.iter().map(|site| RoundTrips::start(site, transport)).collect();
    let pairs = pairs?;
    let contestants = pairs.iter().map(|pair| {
        Contestant::new(&pair.site().name, move || {
            let latency = pair.measure(effort.turn)?;
            Ok([latency.one_way, latency.cpu])
        })
    });
    let [one_way, cpu] = Comparison::run_all(
        [(figure, "µs"), (&format!("{figure}-cpu"), "µs")],
        effort,
        contestants.collect(),
    )?;
    Ok(Latencies { one_way, cpu })
}

pub(crate) fn packets(figure: &str, sites: &[Site], effort: Effort) -> Result<Comparison> {
    let contestants =
        sites.iter().map(|site| Contestant::new(&site.name, || Ok([packets_per_second(site, effort.turn)?])));
    one(figure, "packets/s", effort, contestants.collect())
}

pub(crate) fn stream(figure: &str, sites: &[Site], effort: Effort) -> Result<Comparison> {
    let streams: Result<Vec<Stream<'_>>> = sites.iter().map(Stream::start).collect();
    let streams = streams?;
    let contestants = sites.iter().zip(&streams).map(|(site, stream)| {
        Contestant::new(&site.name, || Ok([stream.measure(effort.turn * STREAM_TURNS)?]))
    });
    one(figure, "Gbit/s", effort, contestants.collect())
}

fn one(
    figure: &str,
    unit: &'static str,
    effort: Effort,
    contestants: Vec<Contestant<'_, 1>>,
) -> Result<Comparison> {
    let [comparison] = Comparison::run_all([(figure, unit)], effort, contestants)?;
    Ok(comparison)
}

impl Latencies {
    /// Records the one-way latency and the busy time, and adds both charts.
    pub(crate) fn report(
        &self,
        figure: &str,
        ours: &str,
        reference: &str,
        target: Option<Target>,
        report: &mut Report,
    ) -> Result<()> {
        let added = Ratio::AddedTo(LIMIT);
        self.one_way.record(figure, ours, reference, added, target, report)?;
        self.cpu.record(&format!("{figure}-cpu"), ours, reference, added, None, report)?;
        report.charts.extend([self.one_way.chart(), self.cpu.chart()]);
        Ok(())
    }
}
