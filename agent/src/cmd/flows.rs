//! `podwire flows`: what the programs remember of flows, as `conntrack -L` shows what netfilter
//! does.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use clap::{Args, ValueEnum};
use podwire_common::abi::{
    Flow, STATE_ESTABLISHED, STATE_FIN, STATE_OUTSIDE_RESET, STATE_REPLIED, STATE_REPLY_FIN,
    TRANSLATION_HOST, TRANSLATION_HOST_PORT, TRANSLATION_OUTSIDE, TRANSLATION_RELAY, TRANSLATION_RESERVATION,
    TRANSLATION_SERVICE, TRANSLATION_SNAT, TRANSLATION_TUNNEL, Translation,
};
use podwire_common::flow::protocol;
use podwire_common::nat::{idle_timeout, is_closed};
use podwire_common::reason::Path;
use serde::Serialize;

use super::Error;
use super::output::{Output, Row, Rows};
use super::selection;
use super::view::{Common, View};
use crate::dataplane::flow_list::{Entry, Known};
use crate::housekeeping;
use crate::packet_record::{End, Link, name_of, protocol_name};

/// Flows of which `--delete` names some if the filters match several.
const NAMED: usize = 3;

/// Options of `podwire flows`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Examples:\n  podwire flows --pod shop/web --protocol tcp\n  podwire flows --kind translation --address 203.0.113.5 --port 443 --delete"
)]
pub struct Options {
    /// Filters.
    #[command(flatten)]
    pub filters: selection::Flows,
    /// Show only flows of these kinds. Separate kinds by commas.
    #[arg(long, value_delimiter = ',', value_name = "KIND")]
    pub kind: Vec<Kind>,
    /// Show at most so many flows.
    #[arg(long, value_name = "NUMBER")]
    pub limit: Option<usize>,
    /// Remove the flow from all tables, if the filters match exactly one. Its next packet then
    /// counts as the first one of a new flow.
    #[arg(long, conflicts_with_all = ["watch", "limit"])]
    pub delete: bool,
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

/// A kind of flow: the table that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An address or a port is translated, or reserved (`TRANSLATIONS`).
    Translation,
    /// The flow goes through the host stack (`STACK_FLOWS`).
    Stack,
    /// A client outside began the flow to a pod's own address (`INBOUND_FLOWS`).
    Inbound,
    /// What the programs know of a flow that goes past the host stack (`FLOWS`, `FLOWS6`). One
    /// entry is one direction.
    Known,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FlowRow {
    /// The table that it is in.
    kind: Kind,
    /// Name or number of the transport protocol.
    protocol: String,
    /// Where its packets come from. No port: all source ports.
    source: End,
    /// Where they go.
    destination: End,
    /// The source after translation, if it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    translated_source: Option<End>,
    /// The destination after translation, if it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    translated_destination: Option<End>,
    /// Why it is translated, or the path of a known flow.
    way: String,
    /// Its state.
    state: &'static str,
    /// Whether the host stack sees its packets.
    through_stack: bool,
    /// The outer link of a translation; the link by which a known flow's packets leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Link>,
    /// Seconds since its last packet. A flow is refreshed about once a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_seconds: Option<u64>,
    /// Seconds without a packet after which the entry is removed. None: connection tracking decides
    /// (stack), or the table evicts (inbound, known).
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<u64>,
}

impl Row for FlowRow {
    const HEADINGS: &'static [&'static str] = &[
        "KIND",
        "PROTO",
        "SOURCE",
        "DESTINATION",
        "TRANSLATED",
        "WAY",
        "STATE",
        "STACK",
        "LINK",
        "IDLE",
        "TIMEOUT",
    ];

    fn cells(&self) -> Vec<String> {
        let translated = |name: &str, end: &Option<End>| end.as_ref().map(|end| format!("{name} {end}"));
        let ends =
            [translated("from", &self.translated_source), translated("to", &self.translated_destination)];
        let seconds = |seconds: Option<u64>| seconds.map(|number| format!("{number}s")).unwrap_or_default();
        let kind = self.kind.to_possible_value();
        vec![
            kind.map(|kind| kind.get_name().to_owned()).unwrap_or_default(),
            self.protocol.clone(),
            self.source.to_string(),
            self.destination.to_string(),
            ends.into_iter().flatten().collect::<Vec<_>>().join(" "),
            self.way.clone(),
            self.state.into(),
            if self.through_stack { "yes" } else { "no" }.into(),
            self.link.as_ref().map(ToString::to_string).unwrap_or_default(),
            seconds(self.idle_seconds),
            seconds(self.timeout_seconds),
        ]
    }
}

/// Prints the flows, or deletes one.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<(), Error> {
    if options.delete {
        return delete(options);
    }
    options.common.printing.repeat(|printing| {
        let view = View::open(&options.common.folders)?;
        list(options, &view, printing.output)
    })
}

/// Prints the flows while it walks through the tables.
fn list(options: &Options, view: &View, output: Output) -> Result<(), Error> {
    let mut rows = Rows::new::<FlowRow>(io::stdout().lock(), output);
    let (mut left, mut written) = (options.limit.unwrap_or(usize::MAX), Ok(()));
    for_each(options, view, |_, row| {
        if left > 0 && written.is_ok() {
            left -= 1;
            written = rows.push(&row);
        }
    })?;
    written?;
    Ok(rows.finish()?)
}

/// Calls `show` with each flow that the filters admit.
fn for_each(options: &Options, view: &View, mut show: impl FnMut(&Flow, FlowRow)) -> Result<(), Error> {
    let now = housekeeping::now();
    Ok(view.maps.for_each_flow(|flow, entry| {
        let Some(row) = row(view, flow, entry, now) else { return };
        let ends = [Some(&row.source), Some(&row.destination), row.translated_source.as_ref()];
        let ends: Vec<_> = ends.into_iter().chain([row.translated_destination.as_ref()]).flatten().collect();
        let is_kind = options.kind.is_empty() || options.kind.contains(&row.kind);
        if is_kind && options.filters.admit(&row.protocol, &ends) {
            show(flow, row);
        }
    })?)
}

/// Deletes the flow that the filters name.
fn delete(options: &Options) -> Result<(), Error> {
    let mut view = View::open(&options.common.folders)?;
    let mut matching = BTreeSet::new();
    for_each(options, &view, |flow, _| {
        // More flows would not be named, and the table may have many.
        if matching.len() <= 1 << 10 && !flow.is_destination_key() {
            matching.insert(*flow);
        }
    })?;
    let originals = matching.iter().map(|flow| view.maps.original_of(flow));
    let originals: BTreeSet<Flow> = originals.collect::<Result<_, _>>()?;
    let shown = |flow: &Flow| {
        let end = |address, port: podwire_common::addr::Be16| view.end(address, port.get());
        let (source, destination) =
            (end(flow.source, flow.source_port), end(flow.destination, flow.destination_port));
        format!("{} {source} > {destination}", protocol_name(flow.protocol))
    };
    let flow = match originals.first() {
        None => return Err(Error::NotOneFlow { found: "no flow matches the filters".into() }),
        Some(flow) if originals.len() == 1 => *flow,
        Some(_) => {
            let some: Vec<_> = originals.iter().take(NAMED).map(shown).collect();
            let (count, some) = (originals.len(), some.join("; "));
            let found = format!("at least {count} flows match the filters, among them {some}");
            return Err(Error::NotOneFlow { found });
        }
    };
    let shown = shown(&flow);
    let entries = view.maps.forget_flow(&flow)?;
    println!("deleted: {shown} ({entries} entries)");
    Ok(())
}

/// Returns the row of an entry. `None`: the entry is the half of a translation's replies, which the
/// row of the other half shows.
fn row(view: &View, flow: &Flow, entry: Entry, now: u64) -> Option<FlowRow> {
    let idle = |last_seen: u64| Some(Duration::from_nanos(now.saturating_sub(last_seen)).as_secs());
    let ends = |flow: &Flow| {
        let source = view.end(flow.source, flow.source_port.get());
        (source, view.end(flow.destination, flow.destination_port.get()))
    };
    let (source, destination) = ends(flow);
    let base = FlowRow {
        kind: Kind::Stack,
        protocol: protocol_name(flow.protocol).into_owned(),
        source: source.clone(),
        destination: destination.clone(),
        translated_source: None,
        translated_destination: None,
        way: String::new(),
        state: "",
        through_stack: false,
        link: None,
        idle_seconds: None,
        timeout_seconds: None,
    };
    let after = |rewritten: &Flow| {
        let (new_source, new_destination) = ends(rewritten);
        let changed = |new: End, old: &End| (new != *old).then_some(new);
        (changed(new_source, &source), changed(new_destination, &destination))
    };
    Some(match entry {
        Entry::Translation(half) if half.reply != 0 && half.kind != TRANSLATION_RESERVATION => return None,
        Entry::Translation(half) => {
            let is_reservation = half.kind == TRANSLATION_RESERVATION;
            let (translated_source, translated_destination) =
                if is_reservation { (None, None) } else { after(&half.translated(flow.protocol)) };
            FlowRow {
                kind: Kind::Translation,
                translated_source,
                translated_destination,
                way: way_of(&half).into(),
                state: state_of(half.state, flow.protocol),
                through_stack: half.past_stack == 0
                    && !matches!(
                        half.kind,
                        TRANSLATION_HOST_PORT | TRANSLATION_SERVICE | TRANSLATION_OUTSIDE | TRANSLATION_RELAY
                    ),
                link: (half.ifindex != 0).then(|| view.link(half.ifindex)),
                idle_seconds: idle(half.last_seen),
                timeout_seconds: Some(idle_timeout(half.state, flow.protocol)),
                ..base
            }
        }
        Entry::Stack(last_seen) => FlowRow {
            way: "host-stack".into(),
            state: "recorded",
            through_stack: true,
            idle_seconds: idle(last_seen),
            ..base
        },
        Entry::Inbound(last_seen) => FlowRow {
            kind: Kind::Inbound,
            way: Path::Untranslated.name().into(),
            state: "recorded",
            idle_seconds: idle(last_seen),
            ..base
        },
        Entry::Known(Known { rewritten, to, path, is_current }) => {
            let (translated_source, translated_destination) = after(&rewritten);
            FlowRow {
                kind: Kind::Known,
                translated_source,
                translated_destination,
                way: name_of(Path::ALL, path.into(), |path| path as u32, Path::name).into_owned(),
                state: if is_current { "current" } else { "stale" },
                link: Some(view.link(to)),
                ..base
            }
        }
    })
}

fn way_of(half: &Translation) -> &'static str {
    match half.kind {
        TRANSLATION_SNAT => "snat",
        TRANSLATION_HOST => "host-snat",
        TRANSLATION_HOST_PORT if half.hairpin != 0 => "host-port-hairpin",
        TRANSLATION_HOST_PORT => "host-port",
        TRANSLATION_SERVICE if half.hairpin != 0 => "service-hairpin",
        TRANSLATION_SERVICE => "service",
        TRANSLATION_OUTSIDE => "service-outside",
        TRANSLATION_RELAY => "service-relay",
        TRANSLATION_RESERVATION => "reservation",
        TRANSLATION_TUNNEL => "tunnel-snat",
        _ => "unknown",
    }
}

/// Returns the name of a translation's state.
fn state_of(state: u8, number: u8) -> &'static str {
    const CLOSING: u8 = STATE_FIN | STATE_REPLY_FIN | STATE_OUTSIDE_RESET;
    match number {
        protocol::TCP if is_closed(state) => "closed",
        protocol::TCP if state & CLOSING != 0 => "closing",
        _ if state & STATE_ESTABLISHED != 0 => "established",
        _ if state & STATE_REPLIED != 0 => "replied",
        _ => "unreplied",
    }
}
