//! `podwire status`: the state of this node's pod network on one screen.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use podwire_common::abi::{Holder, TABLE_STACK_FLOWS, TABLE_TRANSLATIONS};
use podwire_common::addr::Addr;
use podwire_common::tables::Table;

use super::output::{self, list, write_aligned};
use super::view::{Common, View};
use super::{Error, drops};
use crate::housekeeping;
use crate::operator::client::{self, Place};
use crate::operator::{Line, Question};
use crate::packet_record::protocol_name;
use crate::status::{Condition, Share, Status};

/// Exit code: a condition holds.
const NOT_WELL: u8 = 3;
/// Exit code: no agent answers.
const NO_AGENT: u8 = 4;
/// Holders of shares that are shown.
const HOLDERS: usize = 3;

/// Options of `podwire status`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 the command failed, 3 a condition holds, 4 no agent answers.\n\nExample: podwire status --output json | jq '.conditions[].remedy'"
)]
pub struct Options {
    /// Options of every command that shows something.
    #[command(flatten)]
    pub common: Common,
}

/// Prints the state. The exit code says whether all is well.
///
/// # Errors
/// See [`Error`].
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    let mut code = ExitCode::SUCCESS;
    options.common.printing.repeat(|printing| {
        let (status, no_agent) = match ask(&options.common.folders.place) {
            Err(error @ client::Error::NoAgent { .. }) => (Status::default(), Some(error.to_string())),
            told => (told?, None),
        };
        let status = with_tables(status, options, no_agent.is_some())?;
        code = match (&no_agent, status.conditions.is_empty()) {
            (Some(_), _) => ExitCode::from(NO_AGENT),
            (None, false) => ExitCode::from(NOT_WELL),
            (None, true) => ExitCode::SUCCESS,
        };
        Ok::<_, Error>(output::print_one(&status, printing.output, |status, out| {
            write_text(status, no_agent.as_deref(), out)
        })?)
    })?;
    Ok(code)
}

/// Asks the agent for its view of the node.
///
/// # Errors
/// See [`client::Error`].
pub(super) fn ask(place: &Place) -> Result<Status, client::Error> {
    client::ask_for(place, &Question::Status, |line| match line {
        Line::Status { status } => Some(*status),
        _ => None,
    })
}

/// Adds what the tables show. Without an agent, that is all there is.
fn with_tables(mut status: Status, options: &Options, is_alone: bool) -> Result<Status, Error> {
    let view = match View::open(&options.common.folders) {
        Ok(view) => view,
        // An agent answers, so its state is worth more than an error about its tables.
        Err(_) if !is_alone => return Ok(status),
        Err(error) => return Err(error),
    };
    (status.tables, status.shares) = (view.fill()?, shares(&view)?);
    if is_alone {
        status.endpoints = view.endpoints();
        status.nodes.used = view.nodes();
        status.drops = drops::of_tables(&view.maps)?;
    }
    Ok(status)
}

/// Returns the holders with the most entries of each table with shares.
fn shares(view: &View) -> Result<Vec<Share>, Error> {
    let mut shares = Vec::new();
    for (number, table) in [(TABLE_TRANSLATIONS, Table::Translations), (TABLE_STACK_FLOWS, Table::StackFlows)]
    {
        let mut holders = view.maps.holders_of(number)?;
        holders.sort_by_key(|(_, entries)| std::cmp::Reverse(*entries));
        let free = view.maps.room_of(number)?;
        shares.extend(holders.into_iter().take(HOLDERS).map(|(holder, entries)| Share {
            table: table.name().into(),
            holder: name_of(view, &holder),
            entries,
            free,
        }));
    }
    Ok(shares)
}

fn name_of(view: &View, holder: &Holder) -> String {
    if holder.address == Addr::UNSPECIFIED {
        return "this node".into();
    }
    let end = view.end(holder.address, holder.port.get());
    match holder.protocol {
        0 => end.to_string(),
        number => format!("hostPort to {} {end}", protocol_name(number)),
    }
}

const WELL: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const WARNING: Style = AnsiColor::Yellow.on_default();
const HEADING: Style = Style::new().bold();

fn write_text(status: &Status, no_agent: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    match (&status.agent, no_agent) {
        (Some(agent), _) => {
            let ready =
                if agent.ready { format!("{WELL}ready{WELL:#}") } else { format!("{BAD}not ready{BAD:#}") };
            let started = agent.started;
            line(
                out,
                "agent",
                &format!("{} on {}, {ready}, runs since {started:.0}", agent.version, agent.node),
            )?;
        }
        (None, why) => {
            let why = why.unwrap_or_default();
            line(
                out,
                "agent",
                &format!(
                    "{BAD}does not answer{BAD:#}: {why}. Pods keep their network. The rest is from the pinned tables."
                ),
            )?;
        }
    }
    if let Some(kernel) = &status.kernel {
        let named =
            |has: bool| list(kernel.offers.iter().filter(|offer| *offer.1 == has).map(|(name, _)| name));
        let (has, lacks) = (named(true), named(false));
        let lacks = if lacks.is_empty() { String::new() } else { format!("; lacks {lacks}") };
        line(out, "kernel", &format!("{}: has {has}{lacks}", kernel.release))?;
    }
    if let Some(modes) = &status.modes {
        let mut text = modes.mode.clone();
        if let (Some(family), Some(port)) = (&modes.tunnel_family, modes.vxlan_port) {
            let _ = write!(text, " (tunnel {family} preferred, UDP port {port})");
        }
        let mtu = modes.pod_mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
        line(out, "mode", &format!("{text}; pods have {}{mtu}", list(&modes.families)))?;
    }
    for link in &status.links {
        let text = format!("{} ({}), programs by {}, MTU {}", link.link, link.role, link.programs, link.mtu);
        line(out, "link", &format!("{text}, {}", list(&link.addresses)))?;
    }
    let skipped = status.nodes.skipped.iter().map(|(reason, count)| format!("{count} {reason}"));
    let skipped = list(skipped);
    let skipped = if skipped.is_empty() { String::new() } else { format!(", skipped: {skipped}") };
    let age = match status.nodes.age_seconds {
        None => String::new(),
        Some(0) => ", list is current".into(),
        Some(age) => format!(", {WARNING}list may be {age} s old{WARNING:#}"),
    };
    line(out, "nodes", &format!("{} used{skipped}{age}", status.nodes.used))?;
    line(out, "endpoints", &status.endpoints.to_string())?;
    for pool in &status.addresses {
        line(out, "addresses", &format!("{}: {} used, {} free", pool.network, pool.used, pool.free))?;
    }
    let tables = status.tables.iter().filter(|table| table.entries > 0).map(|table| {
        let text = format!("{} {}/{}", table.table, table.entries, table.max_entries);
        let has_room = housekeeping::has_room(table.entries, table.max_entries);
        if has_room { text } else { format!("{WARNING}{text}{WARNING:#}") }
    });
    line(out, "tables", &list(tables))?;
    for share in &status.shares {
        let Share { table, holder, entries, free } = share;
        line(out, "share", &format!("{table}: {holder} has {entries} entries, {free} are free"))?;
    }
    if status.drops.is_empty() {
        line(out, "drops", "none")?;
    }
    let drops = status.drops.iter().map(|drops| {
        let lately = drops.last_minute.map(|count| format!("{count} in the last minute")).unwrap_or_default();
        vec!["  ".to_owned() + &drops.reason, format!("{} packets", drops.packets), lately]
    });
    if !status.drops.is_empty() {
        line(out, "drops", "")?;
        write_aligned(out, drops)?;
    }
    write_conditions(&status.conditions, no_agent.is_some(), out)
}

fn write_conditions(conditions: &[Condition], is_alone: bool, out: &mut dyn Write) -> io::Result<()> {
    if conditions.is_empty() {
        return line(
            out,
            "conditions",
            &if is_alone { "not known".into() } else { format!("{WELL}all is well{WELL:#}") },
        );
    }
    line(out, "conditions", &format!("{WARNING}{} not well{WARNING:#}", conditions.len()))?;
    for condition in conditions {
        let Condition { condition, severity, sentence, remedy, .. } = condition;
        writeln!(
            out,
            "  {BAD}{condition}{BAD:#} ({severity}): {sentence}\n    {HEADING}do{HEADING:#}: {remedy}"
        )?;
    }
    Ok(())
}

fn line(out: &mut dyn Write, heading: &str, text: &str) -> io::Result<()> {
    writeln!(out, "{HEADING}{heading:<11}{HEADING:#}{text}")
}
