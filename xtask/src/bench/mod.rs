//! `cargo xtask bench`: Podwire beside what it replaces, its peers' way and the limit, in one run.
//!
//! Contestants take turns within every round, both ends of a measurement are pinned, and the ratio is taken round by round:
//! what disturbs the machine disturbs all of them.

mod agent_cost;
mod between_nodes;
mod chart;
mod client;
mod cni;
mod comparison;
mod contest;
mod crowd;
mod record;
mod same_node;
mod scale;
mod site;
mod statistics;
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::bench::record::Report;
use crate::bench::site::Programs;
use crate::{build, packages, run, setup};

/// Fewer rounds have no median worth the name.
const FEWEST_ROUNDS: usize = 7;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure; everything unless told otherwise.
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Also writes `results.json` and a chart for each figure there.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How often every contestant has its turn.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long a turn takes, milliseconds; a stream's is five times as long.
    #[arg(long, default_value_t = 200)]
    turn: u64,
    /// Another build of the BPF object, as one more contestant.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
}

/// A group of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Group {
    /// Pod to pod on one node.
    SameNode,
    /// Pod to pod on two nodes.
    CrossNode,
    /// Pod to the world.
    Snat,
    /// New connections of pods to the world.
    Connect,
    /// ADD, from the plugin's start to its end.
    Cni,
    /// A node with 250 pods in a cluster of 5,000 nodes.
    Scale,
}

/// What every measurement has in common.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    turn: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(run::is_root(), "a measurement makes network namespaces: run it as root");
    ensure!(options.rounds >= FEWEST_ROUNDS, "--rounds {}: {FEWEST_ROUNDS} at least", options.rounds);
    let toolchain = setup::everything()?;
    packages::ensure(&packages::MEASUREMENTS)?;
    let programs = Programs {
        binaries: build::release_with(&toolchain)?,
        through_device: build::object_with(&toolchain, "through-device")?,
        other: options.object.clone(),
    };
    let effort = Effort { rounds: options.rounds, turn: Duration::from_millis(options.turn) };
    let wanted: BTreeSet<Group> = match &options.groups[..] {
        [] => <Group as clap::ValueEnum>::value_variants().iter().copied().collect(),
        groups => groups.iter().copied().collect(),
    };
    let mut report = Report::default();
    for group in wanted {
        run::step(&format!("measure {group:?}"), || group.measure(&programs, effort, &mut report))?;
    }
    println!("{}", report.table());
    if let Some(folder) = &options.out {
        report.write(folder).with_context(|| format!("write the results to {}", folder.display()))?;
        println!("results.json and charts are in {}", folder.display());
    }
    Ok(())
}

impl Group {
    fn measure(self, programs: &Programs, effort: Effort, report: &mut Report) -> Result<()> {
        match self {
            Self::SameNode => same_node::measure(programs, effort, report),
            Self::CrossNode => between_nodes::measure(programs, effort, report),
            Self::Snat => world::round_trips(programs, effort, report),
            Self::Connect => world::connections(programs, effort, report),
            Self::Cni => cni::measure(programs, effort, report),
            Self::Scale => scale::measure(programs, effort, report),
        }
    }
}
