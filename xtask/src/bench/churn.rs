//! The cost of unrelated changes for a flow: nodes, pods and hostPorts that the flow does not use
//! come and go. The node of the flow's client sees 100 additions and removals a second.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use podwire_common::helper::Helper;
use podwire_common::reason::Path as TrafficPath;
use serde_json::{Value, json};
use xtask::lab::{Families, Lab, Node, Ns};

use crate::bench::Effort;
use crate::bench::agent_cost::on_core;
use crate::bench::beside::{CORE, Changes};
use crate::bench::client::{RoundTrips, Transport};
use crate::bench::cni::{delete, milliseconds};
use crate::bench::comparison::{Comparison, Contestant, Ratio};
use crate::bench::record::{Record, Report, Target};
use crate::bench::site::{Programs, Site};

const QUIET: &str = "podwire, quiet";
const CHURN: &str = "podwire, 100 changes a second";
/// Changes a second. Each adds or removes one node, pod or hostPort.
const CHANGES: u32 = 100;
/// The number of nodes that are added, and also of nodes that are removed, for each ADD or DEL of
/// the pod. An ADD or DEL is two changes, because the pod has a hostPort.
const NODES_TO_A_POD: usize = 21;
/// Nodes that come and go; half of them exist at any time. A node exists for two seconds, because
/// the agent handles the changes of one second together.
const OTHERS: u16 = 200;
/// The length of a measurement in turns. The agent handles the changes of one second together, so a
/// measurement has to contain several such batches.
const TURNS: u32 = 15;
/// The most packets a second, both directions together, that take the slow path. Each direction
/// takes it once in 256 jiffies in any case. With 1000 jiffies a second, both together take it
/// eight times.
const MOST_JUDGED: f64 = 20.0;
/// The time from the first change until the agent works on changes.
const BEGINNING: Duration = Duration::from_secs(2);
/// The agent handles the changes of this time together.
const COLLECTING: Duration = Duration::from_secs(1);

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    latency(&cluster(programs, None)?, effort, report)?;
    share_of_known(&cluster(programs, Some(&programs.counting))?, effort, report)
}

/// Makes two nodes with agents that ask an API server.
fn cluster(programs: &Programs, object: Option<&Path>) -> Result<Lab> {
    let mut builder =
        Lab::builder().families(Families::V4).cable(true).nodes(2).agents(false).binaries(&programs.binaries);
    if let Some(object) = object {
        builder = builder.agent_arguments(&["--bpf-object", &object.to_string_lossy()]);
    }
    let lab = builder.build()?;
    on_core(CORE, || lab.nodes().iter().try_for_each(Node::start_agent))?;
    Ok(lab)
}

fn latency(lab: &Lab, effort: Effort, report: &mut Report) -> Result<()> {
    let site = site(lab)?;
    let pair = RoundTrips::start(&site, Transport::Udp)?;
    let turn = effort.turn * TURNS;
    let quiet = Contestant::new(QUIET, || Ok([pair.measure(turn)?.one_way]));
    let churn = Contestant::new(CHURN, || Ok([beside_changes(lab, || pair.measure(turn))?.one_way]));
    let [comparison] = Comparison::run_all([("churn", "µs")], effort, vec![quiet, churn])?;
    let target = Some(Target::AtMost(1.03));
    comparison.record("churn", CHURN, QUIET, Ratio::Plain, target, report)?;
    report.charts.push(comparison.chart());
    Ok(())
}

/// Measures the share of the pods' packets that take the fast path. All others ask the kernel for a
/// route.
fn share_of_known(lab: &Lab, effort: Effort, report: &mut Report) -> Result<()> {
    let site = site(lab)?;
    let pair = RoundTrips::start(&site, Transport::Udp)?;
    pair.measure(effort.turn)?;
    let counts = || -> Result<[u64; 2]> {
        let mut sums = [0; 2];
        for node in lab.nodes() {
            sums[0] += node.traffic()?.get(TrafficPath::TunnelOut.name()).copied().unwrap_or(0);
            sums[1] += node.helper_calls(Helper::FibLookup)?;
        }
        Ok(sums)
    };
    let (mut shares, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let before = counts()?;
        let turn = effort.turn * TURNS;
        beside_changes(lab, || pair.measure(turn))?;
        let after = counts()?;
        let [sent, asked] = [after[0] - before[0], after[1] - before[1]];
        shares.push((1.0 - asked as f64 / sent as f64) * 100.0);
        rates.push(asked as f64 / turn.as_secs_f64());
    }
    report.records.push(Record::alone("churn-judged", "1/s", &rates, Some(MOST_JUDGED)));
    report.records.push(Record::beside("churn-known", "%", &shares, 100.0, Target::AtLeast(0.98)));
    Ok(())
}

fn site(lab: &Lab) -> Result<Site> {
    let (client, server) = (lab.node(0).add_pod("client")?, lab.node(1).add_pod("server")?);
    Ok(Site::of_pods(CHURN, &client, &server))
}

/// Measures while nodes, pods and hostPorts come and go. Fails if they did not.
fn beside_changes<T: Send>(lab: &Lab, measure: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let all: Value = serde_json::from_str(&lab.node_list_with(OTHERS)?)?;
    let others = &all["items"].as_array().context("a list without items")?[lab.nodes().len()..];
    // An agent makes at least one change of an entry for each: the change of one node alone writes
    // several entries and routes.
    let changes = Changes { rate: CHANGES, beginning: BEGINNING, collecting: COLLECTING };
    changes.beside(lab, |is_over| change(lab, others, is_over), measure)
}

fn change(lab: &Lab, others: &[Value], is_over: &AtomicBool) -> Result<()> {
    let (api, node) = (lab.api_server()?, lab.node(0));
    let host_port = json!({ "portMappings": [{ "hostPort": 9099, "containerPort": 80, "protocol": "tcp" }] });
    let pod = node.cni_call("ADD", "churn", &host_port);
    if Ns::open(&pod.container_id).is_err() {
        Ns::create(&pod.container_id)?;
    }
    let (mut number, mut due) = (0, Instant::now());
    let mut is_there = false;
    while !is_over.load(Ordering::Relaxed) {
        let mut changes = 1;
        if number % (2 * NODES_TO_A_POD) == 0 {
            // The ADD or DEL is two changes more: the pod and its hostPort.
            match is_there {
                false => drop(milliseconds(&pod.run()?)?),
                true => drop(delete(&pod)?),
            }
            (is_there, changes) = (!is_there, changes + 2);
        }
        let other = |offset| &others[(number / 2 + offset) % others.len()];
        match number % 2 {
            0 => api.put(other(0).clone()),
            _ => {
                let name = other(others.len() / 2)["metadata"]["name"].as_str();
                api.delete(name.context("a node without a name")?);
            }
        }
        number += 1;
        due += Duration::from_secs(1) / CHANGES * changes;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    if is_there {
        delete(&pod)?;
    }
    Ok(())
}
