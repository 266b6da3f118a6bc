//! `cargo xtask bench`: compares Podwire with the plugins that it replaces, with the peers' way (a
//! VXLAN device) and with the limit (a bare veth pair), in one run.
//!
//! Contestants take turns within every round. Both ends of a measurement are pinned to cores. The
//! ratio is taken round by round, so a disturbance of the machine affects all contestants.

mod agent_cost;
mod bandwidth;
mod beside;
mod between_nodes;
mod chart;
mod churn;
mod client;
mod cni;
mod comparison;
mod contest;
mod control_plane;
mod crowd;
mod families;
mod listener;
mod programs;
mod record;
mod restart;
mod same_node;
mod scale;
mod services;
mod site;
mod statistics;
mod world;

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;

use crate::bench::record::Report;
use crate::bench::site::{Family, Programs};
use crate::{build, packages, run, setup};

/// The fewest rounds with a meaningful median.
const FEWEST_ROUNDS: usize = 7;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Groups of figures to measure; all but `programs` by default.
    #[arg(value_enum)]
    groups: Vec<Group>,
    /// Families of the pods' addresses.
    ///
    /// `same-node`, `cross-node`, `snat` and `connect` measure each of them. Names of IPv6 figures
    /// begin with `ipv6-`. The other groups measure IPv4 only, and `families` always measures both.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "ipv4")]
    family: Vec<Family>,
    /// Write results and a chart for each figure to this folder.
    ///
    /// The results are `results.json` and `results.md`. `programs` writes `programs.json` and
    /// `programs.md`, without charts.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Number of rounds, 7 at least. Every contestant has one turn in each.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Length of a turn, milliseconds. A stream lasts 5 turns (in `bandwidth` 20), a flow of
    /// `churn` 15.
    #[arg(long, default_value_t = 200)]
    turn: u64,
    /// Packets of each kind that `programs` sends.
    #[arg(long, default_value = "1000000")]
    packets: NonZeroU32,
    /// Another build to compare by VXLAN as one more contestant: a folder of the two release
    /// binaries, or a BPF object alone. The released agent loads such an object.
    #[arg(long, value_name = "PATH")]
    other: Option<PathBuf>,
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
    /// New connections of a pod to the world while `podwire monitor` shows them.
    Listener,
    /// A pod by its service, beside the same pod without it, and beside kube-proxy's rules.
    Services,
    /// A service among 1, 1,000 and 10,000, with Podwire and with kube-proxy's rules.
    ServicesMany,
    /// A host outside reaches a pod by a service: with Podwire, and with rules as kube-proxy's.
    ServicesOutside,
    /// 10,000 services with 50,000 endpoints from an API server over HTTP.
    ServiceScale,
    /// IPv6 beside IPv4, between the same pods.
    Families,
    /// ADD, from the start of the plugin to its end.
    Cni,
    /// A node with 250 pods in a cluster of 5,000 nodes.
    Scale,
    /// 5,000 Node objects from an API server over HTTP.
    ControlPlane,
    /// From the start of an agent that takes over 250 pods to the end of its first ADD.
    Restart,
    /// A flow beside 100 unrelated changes a second.
    Churn,
    /// TCP of pods with a bandwidth limit: the rate beside the limit.
    Bandwidth,
    /// Each program alone with each kind of packet. Not compared, so measured only on request.
    Programs,
}

/// A measurement that adds its figures to the report.
#[derive(Clone, Copy)]
enum Contest {
    /// Measures addresses of the given family.
    OneFamily(fn(&Programs, Family, Effort, &mut Report) -> Result<()>),
    /// Measures IPv4 addresses.
    Ipv4(fn(&Programs, Effort, &mut Report) -> Result<()>),
    /// Compares the families.
    BothFamilies(fn(&Programs, Effort, &mut Report) -> Result<()>),
}

/// Rounds and length of a turn, for all measurements.
#[derive(Clone, Copy, Debug)]
struct Effort {
    rounds: usize,
    turn: Duration,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(run::is_root(), "a measurement makes network namespaces: run it as root");
    ensure!(options.rounds >= FEWEST_ROUNDS, "--rounds {}: {FEWEST_ROUNDS} at least", options.rounds);
    let wanted: BTreeSet<Group> = match &options.groups[..] {
        [] => Group::value_variants().iter().copied().filter(|group| group.contest().is_some()).collect(),
        groups => groups.iter().copied().collect(),
    };
    if wanted.contains(&Group::Programs) {
        programs::measure(options.packets, options.out.as_deref())?;
    }
    let contests: Vec<_> = wanted.iter().filter_map(|group| Some((*group, group.contest()?))).collect();
    if !options.groups.is_empty() {
        for (group, contest) in &contests {
            ensure!(
                !contest.families(options).is_empty(),
                "{group:?} measures IPv4 only: add ipv4 to --family"
            );
        }
    }
    if !contests.is_empty() {
        compare(options, &contests)?;
    }
    Ok(())
}

/// Measures Podwire beside the other contestants.
fn compare(options: &Options, contests: &[(Group, Contest)]) -> Result<()> {
    let toolchain = setup::everything()?;
    packages::ensure(&packages::MEASUREMENTS)?;
    let programs = Programs {
        binaries: build::release_with(&toolchain)?,
        through_device: build::object_with(&toolchain, "through-device")?,
        counting: build::object_with(&toolchain, build::COUNT_HELPERS)?,
        other: options.other.clone(),
    };
    let effort = Effort { rounds: options.rounds, turn: Duration::from_millis(options.turn) };
    let mut report = Report::default();
    for (group, contest) in contests {
        for family in contest.families(options) {
            let what = family.map_or_else(String::new, |family| format!(", {family:?}"));
            let measured = run::step(&format!("measure {group:?}{what}"), || {
                contest.measure(&programs, family.unwrap_or(Family::Ipv4), effort)
            })?;
            report.add(measured, family);
        }
    }
    println!("{}", report.table());
    println!("{}", what_it_cannot_show()?);
    if let Some(folder) = &options.out {
        report.write(folder).with_context(|| format!("write the results to {}", folder.display()))?;
        println!("results.json and charts are in {}", folder.display());
    }
    Ok(())
}

fn what_it_cannot_show() -> Result<String> {
    let kernel = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(kernel).with_context(|| format!("read {kernel}"))?;
    let cores = thread::available_parallelism().context("count the cores")?;
    Ok(format!(
        "On {cores} cores, Linux {}. What this cannot show: a physical NIC with its queues and interrupts, receive offload on a wire, and what more cores would do:\nnodes are network namespaces, joined by veth pairs.",
        release.trim()
    ))
}

impl Group {
    /// Returns the group's measurement, or `None` if the group compares nothing.
    fn contest(self) -> Option<Contest> {
        Some(match self {
            Self::SameNode => Contest::OneFamily(same_node::measure),
            Self::CrossNode => Contest::OneFamily(between_nodes::measure),
            Self::Snat => Contest::OneFamily(world::round_trips),
            Self::Connect => Contest::OneFamily(world::connections),
            Self::Services => Contest::OneFamily(services::inside::measure),
            Self::ServicesMany => Contest::Ipv4(services::inside::measure_many),
            Self::ServicesOutside => Contest::OneFamily(services::outside::measure),
            Self::ServiceScale => Contest::Ipv4(services::scale::measure),
            Self::Families => Contest::BothFamilies(families::measure),
            Self::Cni => Contest::Ipv4(cni::measure),
            Self::Scale => Contest::Ipv4(scale::measure),
            Self::ControlPlane => Contest::Ipv4(control_plane::measure),
            Self::Restart => Contest::Ipv4(restart::measure),
            Self::Listener => Contest::Ipv4(listener::measure),
            Self::Churn => Contest::Ipv4(churn::measure),
            Self::Bandwidth => Contest::Ipv4(bandwidth::measure),
            Self::Programs => return None,
        })
    }
}

impl Contest {
    /// Returns the families for which the contest runs, once for each. `None` is the comparison of
    /// both.
    fn families(self, options: &Options) -> Vec<Option<Family>> {
        let wanted = |family: &Family| options.family.contains(family);
        let all = match self {
            Self::OneFamily(_) => Family::value_variants(),
            Self::Ipv4(_) => &[Family::Ipv4],
            Self::BothFamilies(_) => return vec![None],
        };
        all.iter().copied().filter(wanted).map(Some).collect()
    }

    fn measure(self, programs: &Programs, family: Family, effort: Effort) -> Result<Report> {
        let mut report = Report::default();
        match self {
            Self::OneFamily(measure) => measure(programs, family, effort, &mut report),
            Self::Ipv4(measure) | Self::BothFamilies(measure) => measure(programs, effort, &mut report),
        }?;
        Ok(report)
    }
}
