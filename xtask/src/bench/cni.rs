//! The time of an ADD as a container runtime causes it: from the start of the plugin's process to
//! its end. For the reference, the times of the chain's plugins are added, without the runtime's
//! own work between them.
//!
//! The bench pins nothing to a core, because a runtime pins nothing. An ADD of Podwire runs in two
//! processes; the plugins of the reference have several threads.

use std::sync::Barrier;

use anyhow::{Context as _, Result, anyhow, ensure};
use xtask::lab::reference::{self, Join, Masquerade};
use xtask::lab::{CniCall, CniOutput, Families, Node, Ns};

use crate::bench::Effort;
use crate::bench::comparison::{Comparison, Ratio};
use crate::bench::record::{Report, Target};
use crate::bench::site::{self, FLANNEL, Place, Programs, VXLAN, Way};
use crate::bench::statistics::quantile;

/// Calls of a round. With this number, the 99th percentile is the second longest call.
const CALLS: usize = 104;
/// Calls at the same moment, as a kubelet makes them for a deployment.
const AT_ONCE: usize = 8;

pub(crate) fn measure(programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
    let place = Place::CrossNode;
    let (join, masquerade) = (Join::Vxlan, Masquerade::Iptables);
    let ours = site::podwire(programs, Way::VXLAN, place, Families::V4)?;
    let theirs = site::reference(join, masquerade, place, Families::V4)?;
    let mut ours = attachments(ours.node(0), |node, pod| Attachment::Podwire(Box::new(call(node, pod))))?;
    let mut theirs = attachments(theirs.node(0), |node, pod| {
        Attachment::Chain(reference::calls(node, pod, join, masquerade, &serde_json::json!({})))
    })?;
    for (figure, at_once) in [("cni-add", 1), ("cni-add-8", AT_ONCE)] {
        let mut rounds = [Rounds::default(), Rounds::default()];
        // The first round does not count: it brings binaries and tables into the caches.
        for round in 0..=effort.rounds {
            let mut times = [Vec::new(), Vec::new()];
            for (ours, theirs) in ours.chunks_mut(at_once).zip(theirs.chunks_mut(at_once)) {
                times[0].extend(add_together(ours).context(VXLAN)?);
                times[1].extend(add_together(theirs).context(FLANNEL)?);
            }
            ours.iter().chain(&theirs).try_for_each(Attachment::delete)?;
            if round > 0 {
                rounds.iter_mut().zip(&times).for_each(|(rounds, times)| rounds.add(times));
            }
        }
        let [ours, theirs] = rounds;
        for (percentile, ours, theirs) in [("p50", ours.p50, theirs.p50), ("p99", ours.p99, theirs.p99)] {
            let figure = format!("{figure}-{percentile}");
            let comparison = Comparison::of_rounds(&figure, "ms", vec![(VXLAN, ours), (FLANNEL, theirs)]);
            comparison.record(&figure, VXLAN, FLANNEL, Ratio::Plain, Some(Target::AtMost(0.3)), report)?;
            report.charts.push(comparison.chart());
        }
    }
    Ok(())
}

/// The calls that attach a pod.
enum Attachment {
    Podwire(Box<CniCall>),
    Chain(Vec<CniCall>),
}

/// Percentiles of each round.
#[derive(Default)]
struct Rounds {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, times: &[f64]) {
        self.p50.push(quantile(times, 0.5));
        self.p99.push(quantile(times, 0.99));
    }
}

impl Attachment {
    /// Runs the ADD, and returns its duration in milliseconds.
    fn add(&mut self) -> Result<f64> {
        let output = match self {
            Self::Podwire(call) => call.run()?,
            Self::Chain(calls) => reference::add(calls)?,
        };
        milliseconds(&output)
    }

    fn delete(&self) -> Result<()> {
        match self {
            Self::Podwire(call) => delete(call).map(drop),
            Self::Chain(calls) => reference::delete(calls),
        }
    }
}

/// Returns the call with which Podwire adds a pod of this name.
pub(crate) fn call(node: &Node, pod: &str) -> CniCall {
    node.cni_call("ADD", pod, &serde_json::json!({}))
}

/// Returns the duration of an ADD in milliseconds. Fails if the ADD failed.
pub(crate) fn milliseconds(output: &CniOutput) -> Result<f64> {
    ensure!(output.success, "ADD failed: {}\n{}", output.answer, output.stderr);
    Ok(output.took.as_secs_f64() * 1e3)
}

/// Runs the DEL for an ADD, and returns its duration in milliseconds.
pub(crate) fn delete(add: &CniCall) -> Result<f64> {
    let output = add.with_command("DEL").run()?;
    ensure!(output.success, "DEL failed: {}\n{}", output.answer, output.stderr);
    Ok(output.took.as_secs_f64() * 1e3)
}

/// Makes the namespaces and calls of a round, before anything is measured.
fn attachments(node: &Node, attachment: impl Fn(&Node, &str) -> Attachment) -> Result<Vec<Attachment>> {
    let one = |number| {
        let pod = format!("pod{number}");
        Ns::create(&call(node, &pod).container_id)?;
        Ok(attachment(node, &pod))
    };
    (0..CALLS).map(one).collect()
}

/// Runs all ADDs at the same moment, and returns the duration of each in milliseconds.
fn add_together(attachments: &mut [Attachment]) -> Result<Vec<f64>> {
    let start = Barrier::new(attachments.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = attachments
            .iter_mut()
            .map(|attachment| {
                scope.spawn(|| {
                    start.wait();
                    attachment.add()
                })
            })
            .collect();
        let outcomes =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a call panicked"))?);
        outcomes.collect()
    })
}
