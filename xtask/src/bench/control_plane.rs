//! The agent's cost for the nodes of its cluster, which it gets from an API server over HTTP.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use podwire_common::names::maps;
use serde_json::{Value, json};
use xtask::api_server::ApiServer;
use xtask::lab::{Families, Lab, Node};

use crate::bench::Effort;
use crate::bench::agent_cost::{map_memory, megabytes, on_one_core, process_time};
use crate::bench::crowd::{NODES, read_gauge};
use crate::bench::record::{Record, Report};
use crate::bench::site::Programs;

/// The longest delay, in seconds.
const MOST_DELAY: f64 = 2.0;
/// The most memory, in megabytes, at its peak.
const MOST_MEMORY: f64 = 40.0;
/// The most CPU time, in percent of a core.
const MOST_TIME: f64 = 5.0;
/// Node objects that change in a second.
const CHANGES: u32 = 100;
/// The time for which they change.
const CHANGING: Duration = Duration::from_secs(20);
/// The longest wait for the agent. An agent that has lost its server asks again within 30 seconds.
const DEADLINE: Duration = Duration::from_secs(120);
/// The agent's log message when the nodes of a list are in its maps.
const APPLIED: &str = "node list applied";

/// Runs all measurements. The agent has one core for itself, and the API server the other.
pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let lab = Lab::builder()
        .families(Families::V4)
        .cable(true)
        .nodes(1)
        .agents(false)
        .binaries(&programs.binaries)
        .build()?;
    let (node, api) = (lab.node(0), lab.api_server()?);
    on_one_core(|| node.start_agent())?;
    let all: Value = serde_json::from_str(&lab.node_list_with(NODES - 1)?)?;
    lists(node, api, &all, effort, report)?;
    starts(node, api, effort, report)?;
    let pid = node.agent_pid().context("the agent has ended")?;
    report.records.push(Record::alone(
        "control-plane-rss",
        "MB",
        &[megabytes(pid, "VmHWM")?],
        Some(MOST_MEMORY),
    ));
    report.records.push(Record::alone("control-plane-rss-now", "MB", &[megabytes(pid, "VmRSS")?], None));
    report.records.push(Record::alone("control-plane-maps", "MB", &[map_memory(node)?], None));
    resync(node, api, report)?;
    let moved = |object: &mut Value, turn: u32| {
        let second = 190 + turn % 2;
        let address = object["status"]["addresses"][0]["address"].as_str().unwrap_or_default();
        let rest =
            address.split_once('.').and_then(|(_, rest)| rest.split_once('.')).map_or("", |(_, rest)| rest);
        object["status"]["addresses"][0]["address"] = json!(format!("10.{second}.{rest}"));
    };
    let alive = |object: &mut Value, turn: u32| {
        object["status"]["conditions"][0]["lastHeartbeatTime"] =
            json!(format!("2026-11-01T00:00:{:02}Z", turn % 60));
    };
    changes("control-plane-heartbeats", node, api, &all, effort, &alive, report)?;
    changes("control-plane-changes", node, api, &all, effort, &moved, report)
}

/// Measures the time from the last byte of a list to complete maps. All nodes but one are new.
fn lists(node: &Node, api: &ApiServer, all: &Value, effort: Effort, report: &mut Report) -> Result<()> {
    let alone = json!({ "items": [all["items"][0]] });
    let mut delays = Vec::new();
    for round in 0..=effort.rounds {
        let said = applied(node, NODES);
        api.stop();
        api.set(all);
        api.forget_changes();
        api.start()?;
        let end = until_applied(node, NODES, said)?;
        let listed = api.listed().context("no list was asked for")?;
        let entries = node.map_dump(maps::NODES)?.as_array().map_or(0, Vec::len);
        // Each node has two entries: its podCIDR and its address.
        ensure!(entries >= 2 * usize::from(NODES), "{entries} entries in the map of nodes");
        if round > 0 {
            delays.push(end.duration_since(listed).as_secs_f64());
        }
        let said = applied(node, 1);
        if round < effort.rounds {
            api.set(&alone);
            until_applied(node, 1, said)?;
        }
    }
    report.records.push(Record::alone("control-plane-list", "s", &delays, Some(MOST_DELAY)));
    Ok(())
}

/// Measures the same after a restart of the agent. The maps are full already, and the agent
/// compares all of their entries.
fn starts(node: &Node, api: &ApiServer, effort: Effort, report: &mut Report) -> Result<()> {
    let mut delays = Vec::new();
    for round in 0..=effort.rounds {
        node.kill_agent()?;
        let said = applied(node, NODES);
        on_one_core(|| node.spawn_agent())?;
        let end = until_applied(node, NODES, said)?;
        let listed = api.listed().context("no list was asked for")?;
        if round > 0 {
            delays.push(end.duration_since(listed).as_secs_f64());
        }
    }
    report.records.push(Record::alone("control-plane-start", "s", &delays, Some(MOST_DELAY)));
    Ok(())
}

/// Sends the whole list again. The agent must write nothing.
fn resync(node: &Node, api: &ApiServer, report: &mut Report) -> Result<()> {
    let pid = node.agent_pid().context("the agent has ended")?;
    let before = read_gauge(node, "podwire_operations_total")?;
    let used = process_time(pid)?;
    api.stop();
    // Read this only after the stop: a list may have been on its way.
    let listed = api.listed();
    api.forget_changes();
    api.start()?;
    let start = Instant::now();
    while api.listed() == listed {
        ensure!(start.elapsed() < DEADLINE, "the agent does not ask for the list again");
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_secs(2));
    let written = read_gauge(node, "podwire_operations_total")? - before;
    ensure!(written == 0, "a list that changes nothing led to {written} changes of maps and routes");
    report.records.push(Record::alone(
        "control-plane-resync-cpu",
        "s",
        &[(process_time(pid)? - used).as_secs_f64()],
        None,
    ));
    Ok(())
}

/// Changes [`CHANGES`] objects a second, and measures the agent's share of a core.
fn changes(
    figure: &str,
    node: &Node,
    api: &ApiServer,
    all: &Value,
    effort: Effort,
    change: &dyn Fn(&mut Value, u32),
    report: &mut Report,
) -> Result<()> {
    let pid = node.agent_pid().context("the agent has ended")?;
    let others = all["items"].as_array().context("a list without items")?[1..].to_vec();
    let mut shares = Vec::new();
    let mut number = 0;
    for _ in 0..effort.rounds.min(5) {
        let (used, start) = (process_time(pid)?, Instant::now());
        let mut due = start;
        while start.elapsed() < CHANGING {
            let mut object = others[number % others.len()].clone();
            // The object must differ from the list's and from its last version.
            change(&mut object, 1 + (number / others.len()) as u32);
            api.put(object);
            number += 1;
            due += Duration::from_secs(1) / CHANGES;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let share = (process_time(pid)? - used).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
        shares.push(share);
    }
    report.records.push(Record::alone(figure, "%", &shares, Some(MOST_TIME)));
    Ok(())
}

/// Returns how often the agent has logged that it applied a list of this length.
fn applied(node: &Node, nodes: u16) -> usize {
    let said = format!("{APPLIED} nodes={nodes}");
    node.agent_log().lines().filter(|line| line.ends_with(&said)).count()
}

fn until_applied(node: &Node, nodes: u16, before: usize) -> Result<Instant> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if applied(node, nodes) > before {
            return Ok(Instant::now());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("{} did not say \"{APPLIED}\"; its log ends\n{}", node.name(), node.agent_log_tail(20))
}
