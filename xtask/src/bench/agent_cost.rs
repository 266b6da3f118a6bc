//! The agent's own cost in a large cluster: memory, CPU time at rest, and the time until a Node
//! list is in the maps.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use podwire_common::names::maps;
use rustix::thread::{CpuSet, sched_setaffinity};
use xtask::lab::{Families, Lab, Node};

use crate::bench::Effort;
use crate::bench::crowd::{Crowd, NODES};
use crate::bench::record::{Record, Report};
use crate::bench::site::{self, Place, Programs, Way};

/// The most memory, in megabytes, at its peak.
const MOST_MEMORY: f64 = 40.0;
/// The most CPU time, in percent of a core.
const MOST_TIME: f64 = 0.1;
/// The longest delay, in seconds.
const MOST_DELAY: f64 = 1.0;
/// The wait until an agent is at rest: it asks for paths again up to 60 seconds after a change.
const SETTLING: Duration = Duration::from_secs(75);
/// How long an agent is left alone. The work that it does every two minutes happens at least once
/// in this time.
const REST: Duration = Duration::from_secs(130);
/// The rest with flows in the tables. The agent goes through the tables every ten seconds, and
/// removes unanswered flows after 30 seconds.
const REST_WITH_FLOWS: Duration = Duration::from_secs(30);
/// The agent's log message when the nodes of a list are in its maps.
const APPLIED: &str = "node list applied";
const APPLY_DEADLINE: Duration = Duration::from_secs(60);
/// The core that the agent has for itself.
const CORE: usize = 1;

/// Measures the time from the rename of the Node list to complete maps, with the agent on one core.
/// 4,999 nodes are new to the agent.
pub(crate) fn apply(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let lab = on_one_core(|| site::podwire(programs, Way::VXLAN, Place::World, Families::V4))?;
    let node = lab.node(0);
    let (small, large) = (lab.node_list_with(0)?, lab.node_list_with(NODES - 1)?);
    let mut delays = Vec::new();
    for round in 0..=effort.rounds {
        let delay = apply_list(&lab, node, &large)?;
        let entries = node.map_dump(maps::NODES)?.as_array().map_or(0, Vec::len);
        // Each node has two entries: its podCIDR and its address.
        ensure!(entries >= 2 * usize::from(NODES), "{entries} entries in the map of nodes");
        apply_list(&lab, node, &small)?;
        if round > 0 {
            delays.push(delay.as_secs_f64());
        }
    }
    report.records.push(Record::alone("nodes-apply", "s", &delays, Some(MOST_DELAY)));
    Ok(())
}

/// Measures the agent's peak memory, its current memory, and its CPU time at rest.
pub(crate) fn at_rest(crowd: &Crowd, report: &mut Report) -> Result<()> {
    let node = crowd.node();
    // Change the list once more, now that all pods exist.
    apply_list(&crowd.lab, node, &crowd.lab.node_list_with(NODES - 3)?)?;
    apply_list(&crowd.lab, node, &crowd.lab.node_list_with(NODES - 2)?)?;
    let pid = node.agent_pid().context("the agent has ended")?;
    report.records.push(Record::alone("agent-rss", "MB", &[megabytes(pid, "VmHWM")?], Some(MOST_MEMORY)));
    report.records.push(Record::alone("agent-rss-now", "MB", &[megabytes(pid, "VmRSS")?], None));
    thread::sleep(SETTLING);
    let share = share_of_a_core(pid, REST)?;
    report.records.push(Record::alone("agent-cpu", "%", &[share], Some(MOST_TIME)));
    Ok(())
}

/// Measures what flows cost the agent, and how much memory the kernel's maps take.
pub(crate) fn with_flows(crowd: &Crowd, report: &mut Report) -> Result<()> {
    crowd.refresh_flows()?;
    crowd.check_flows()?;
    let pid = crowd.node().agent_pid().context("the agent has ended")?;
    let share = share_of_a_core(pid, REST_WITH_FLOWS)?;
    crowd.check_flows()?;
    report.records.push(Record::alone("agent-cpu-flows", "%", &[share], None));
    report.records.push(Record::alone("agent-maps", "MB", &[map_memory(crowd.node())?], None));
    Ok(())
}

/// Returns the process's CPU time during a rest, in percent of a core.
fn share_of_a_core(pid: u32, rest: Duration) -> Result<f64> {
    let (before, start) = (process_time(pid)?, Instant::now());
    thread::sleep(rest);
    Ok((process_time(pid)? - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0)
}

/// Returns the CPU time that a process has used so far.
pub(crate) fn process_time(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).context("find the agent's clock")?;
    Ok(Duration::from(clock.now()?))
}

/// Returns the value of a line of `/proc/<pid>/status`, in megabytes.
pub(crate) fn megabytes(pid: u32, line: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')?.strip_suffix(" kB"));
    let kibibytes: f64 = value.with_context(|| format!("no {line} in {text}"))?.trim().parse()?;
    Ok(kibibytes * 1024.0 / 1e6)
}

/// Returns the memory that the kernel has accounted to the pinned maps, in megabytes.
pub(crate) fn map_memory(node: &Node) -> Result<f64> {
    let mut bytes = 0.0;
    for map in maps::ALL {
        let pin = node.bpf_dir().join(map);
        let shown = node.exec(&["bpftool", "-j", "map", "show", "pinned", &pin.to_string_lossy()])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        bytes += shown["bytes_memlock"].as_f64().with_context(|| format!("no bytes_memlock in {shown}"))?;
    }
    Ok(bytes / 1e6)
}

/// Replaces the Node list, and returns the time until the agent logs that the list is in the maps.
fn apply_list(lab: &Lab, node: &Node, list: &str) -> Result<Duration> {
    let said = || node.agent_log().matches(APPLIED).count();
    let before = said();
    lab.write_node_list(list)?;
    let start = Instant::now();
    while start.elapsed() < APPLY_DEADLINE {
        if said() > before {
            return Ok(start.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    bail!("{} did not say \"{APPLIED}\" within {} s", node.name(), APPLY_DEADLINE.as_secs())
}

/// Runs an action on a thread that stays on [`CORE`]. Processes that it starts stay there, too.
pub(crate) fn on_one_core<T: Send>(action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_core(CORE, action)
}

/// Runs an action on a thread that stays on a core. Processes that it starts stay there, too.
pub(crate) fn on_core<T: Send>(core: usize, action: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut cores = CpuSet::new();
            cores.set(core);
            sched_setaffinity(None, &cores).with_context(|| format!("stay on core {core}"))?;
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
