//! `podwire drops`: how many packets the programs have dropped, and why.

use clap::Args;
use podwire_common::reason::Drop;

use super::Error;
use super::output::{self, Row};
use super::view::{Common, open_tables};
use super::{selection, status};
use crate::dataplane::maps::Maps;
use crate::operator::client;
use crate::operator::{Line, Question};
use crate::packet_record::Record;
use crate::status::Drops;

/// Options of `podwire drops`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "The counters have no addresses. With --packets, or with a filter by pod, node, address, port, protocol or family, the command prints single packets: those of the last 1,024 events of drops that the running agent has read. Each reason has at most 32 events a second on each CPU. `podwire monitor` shows packets from now on.\n\nExamples:\n  podwire drops --watch\n  podwire drops --pod shop/web"
)]
pub struct Options {
    /// Show only these reasons. Separate reasons by commas.
    #[arg(long, value_delimiter = ',', value_name = "REASON", value_parser = selection::reason(), hide_possible_values = true)]
    pub reason: Vec<Drop>,
    /// Show the packets that were dropped last, and not the counters.
    #[arg(long)]
    pub packets: bool,
    /// Filters of packets.
    #[command(flatten)]
    pub filters: selection::Flows,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

impl Row for Drops {
    const HEADINGS: &'static [&'static str] = &["REASON", "PACKETS", "BYTES", "LAST MINUTE"];

    fn cells(&self) -> Vec<String> {
        let lately = self.last_minute.map(|count| count.to_string()).unwrap_or_default();
        vec![self.reason.clone(), self.packets.to_string(), self.bytes.to_string(), lately]
    }
}

impl Row for Record {
    const HEADINGS: &'static [&'static str] = &["TIME", "REASON", "PACKET"];

    fn cells(&self) -> Vec<String> {
        let reason = self.reason.clone().unwrap_or_default();
        vec![format!("{:.6}", self.time), reason.into_owned(), self.description()]
    }
}

/// Prints the counters, or the last packets.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    if options.packets || options.filters.are_set() {
        return options
            .common
            .printing
            .repeat(|printing| Ok(output::print(&last(options)?, printing.output)?));
    }
    options.common.printing.repeat(|printing| {
        let drops = match status::ask(&options.common.folders.place) {
            Err(client::Error::NoAgent { .. }) => of_tables(&open_tables(&options.common.folders)?)?,
            told => told?.drops,
        };
        let is_wanted = |drops: &Drops| is_reason(options, &drops.reason);
        let rows: Vec<_> = drops.into_iter().filter(is_wanted).collect();
        Ok(output::print(&rows, printing.output)?)
    })
}

/// Returns the reasons that a table has counted packets for.
///
/// # Errors
/// [`Error::Dataplane`].
pub(super) fn of_tables(maps: &Maps) -> Result<Vec<Drops>, Error> {
    let drops = maps.counters()?.drops.into_iter().filter(|(_, count)| count.packets > 0);
    let drops = drops.map(|(reason, count)| Drops {
        reason: reason.name().into(),
        packets: count.packets,
        bytes: count.bytes,
        last_minute: None,
    });
    Ok(drops.collect())
}

/// Returns the last packets that the filters admit.
fn last(options: &Options) -> Result<Vec<Record>, Error> {
    let mut last = Vec::new();
    client::ask(&options.common.folders.place, &Question::LastDrops, |_, line, _| {
        if let Line::Event(record) = line
            && is_wanted(options, &record)
        {
            last.push(*record);
        }
        Ok(())
    })?;
    Ok(last)
}

fn is_reason(options: &Options, name: &str) -> bool {
    options.reason.is_empty() || options.reason.iter().any(|reason| reason.name() == name)
}

fn is_wanted(options: &Options, record: &Record) -> bool {
    let reason = record.reason.as_deref().unwrap_or_default();
    let inner = record.inner.iter().flat_map(|inner| [&inner.source, &inner.destination]);
    let ends: Vec<_> = record.source.iter().chain(&record.destination).chain(inner).collect();
    is_reason(options, reason) && options.filters.admit(&record.protocol, &ends)
}
