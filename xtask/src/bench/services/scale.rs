//! The agent's cost for 10,000 services with 50,000 endpoints in a cluster of 5,000 nodes. It gets
//! them from an API server over HTTP.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podwire_common::names::maps;
use xtask::lab::{Families, Lab};

use super::changes;
use super::population::{self, ENDPOINTS, SERVICES, SliceChanges};
use crate::bench::Effort;
use crate::bench::agent_cost::{map_memory, megabytes, on_one_core, process_time};
use crate::bench::record::{Record, Report};
use crate::bench::site::Programs;

/// The longest time from the last byte of the lists to complete tables, in seconds.
const MOST_DELAY: f64 = 1.5;
/// The most memory, in megabytes, at its peak.
const MOST_MEMORY: f64 = 60.0;
/// The most CPU time, in percent of a core.
const MOST_TIME: f64 = 5.0;
/// The time for which slices change.
const CHANGING: Duration = Duration::from_secs(20);
/// A time in which the agent compares the tables with what it wants, which it does every two minutes,
/// and in which it saves the services.
const REST: Duration = Duration::from_secs(130);
const DEADLINE: Duration = Duration::from_secs(60);
/// The agent's log messages when the objects of a list are in its maps.
const APPLIED: [&str; 2] = ["node list applied", "service list applied"];

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let (mut delays, mut peaks, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..effort.rounds {
        drop(last.take());
        let (lab, delay) = start(programs)?;
        delays.push(delay.as_secs_f64());
        peaks.push(megabytes(agent(&lab)?, "VmHWM")?);
        last = Some(lab);
    }
    report.records.push(Record::alone("service-scale-complete", "s", &delays, Some(MOST_DELAY)));
    report.records.push(Record::alone("service-scale-rss", "MB", &peaks, Some(MOST_MEMORY)));
    let lab = last.context("no round")?;
    let pid = agent(&lab)?;
    report.records.push(Record::alone("service-scale-rss-now", "MB", &[megabytes(pid, "VmRSS")?], None));
    cpu(&lab, effort, report)?;
    thread::sleep(REST);
    let (peak, now) = (megabytes(pid, "VmHWM")?, megabytes(pid, "VmRSS")?);
    report.records.push(Record::alone("service-scale-rss-later", "MB", &[peak], Some(MOST_MEMORY)));
    report.records.push(Record::alone("service-scale-rss-later-now", "MB", &[now], None));
    report.records.push(Record::alone("service-scale-maps", "MB", &[map_memory(lab.node(0))?], None));
    drop(lab);
    changes::measure(programs, effort, report)
}

/// Starts an agent that has a core for itself. Returns the time from the last byte of the lists to
/// complete tables.
fn start(programs: &Programs) -> Result<(Lab, Duration)> {
    let lab = Lab::builder()
        .families(Families::V4)
        .cable(true)
        .nodes(1)
        .agents(false)
        .binaries(&programs.binaries)
        .agent_arguments(&["--services", "on"])
        .build()?;
    let (node, api) = (lab.node(0), lab.api_server()?);
    population::populate(&lab)?;
    on_one_core(|| node.start_agent())?;
    let begun = Instant::now();
    let end = loop {
        let log = node.agent_log();
        if APPLIED.iter().all(|said| log.contains(said)) {
            break Instant::now();
        }
        ensure!(begun.elapsed() < DEADLINE, "the tables are not complete: {}", node.agent_log_tail(20));
        thread::sleep(Duration::from_millis(1));
    };
    let listed = api.listed().context("no list was asked for")?;
    for (map, least) in [(maps::SERVICES, SERVICES), (maps::BACKENDS, ENDPOINTS)] {
        let entries = node.map_dump(map)?.as_array().map_or(0, Vec::len);
        ensure!(entries >= least, "{entries} entries in {map}, and not {least}");
    }
    Ok((lab, end.saturating_duration_since(listed)))
}

/// Changes slices, and measures the agent's share of a core.
fn cpu(lab: &Lab, effort: Effort, report: &mut Report) -> Result<()> {
    let (pid, api) = (agent(lab)?, lab.api_server()?);
    let (mut shares, mut changes) = (Vec::new(), SliceChanges::default());
    for _ in 0..effort.rounds.min(5) {
        let (used, start) = (process_time(pid)?, Instant::now());
        while start.elapsed() < CHANGING {
            changes.next(api);
        }
        let share = (process_time(pid)? - used).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
        shares.push(share);
    }
    report.records.push(Record::alone("service-scale-changes", "%", &shares, Some(MOST_TIME)));
    Ok(())
}

fn agent(lab: &Lab) -> Result<u32> {
    lab.node(0).agent_pid().context("the agent has ended")
}
