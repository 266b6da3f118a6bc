//! The time for which a node has no agent while its agent is replaced.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use xtask::lab::{CniCall, Families, Ns};

use crate::bench::Effort;
use crate::bench::cni::{call, delete};
use crate::bench::crowd::PODS;
use crate::bench::record::{Record, Report};
use crate::bench::site::{self, Place, Programs, Way};

/// The longest delay, in seconds.
const MOST_DELAY: f64 = 1.0;
const DEADLINE: Duration = Duration::from_secs(30);
/// The error code of a plugin while no agent serves (CNI specification, "Error").
const TRY_AGAIN_LATER: u64 = 11;

/// Measures from the agent's start to the end of the first ADD that the agent serves. The bench
/// repeats the ADD without a pause; a kubelet would ask less often.
pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let lab = site::podwire(programs, Way::VXLAN, Place::CrossNode, Families::V4)?;
    let node = lab.node(0);
    for number in 0..PODS {
        node.add_pod(&format!("pod{number}"))?;
    }
    let call = call(node, "more");
    Ns::create(&call.container_id)?;
    let mut delays = Vec::new();
    for round in 0..=effort.rounds {
        node.kill_agent()?;
        let start = Instant::now();
        node.spawn_agent()?;
        until_served(&call, start)?;
        if round > 0 {
            delays.push(start.elapsed().as_secs_f64());
        }
        delete(&call)?;
    }
    report.records.push(Record::alone("restart-to-add", "s", &delays, Some(MOST_DELAY)));
    Ok(())
}

fn until_served(call: &CniCall, start: Instant) -> Result<()> {
    while start.elapsed() < DEADLINE {
        let output = call.run()?;
        if output.success {
            return Ok(());
        }
        ensure!(output.answer["code"] == TRY_AGAIN_LATER, "{output:?}");
    }
    bail!("no ADD was served within {} s", DEADLINE.as_secs())
}
