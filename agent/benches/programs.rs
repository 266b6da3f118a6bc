//! What a packet costs each program, in nanoseconds by the kernel's own statistics. Prints one JSON list, which `cargo xtask bench programs`
//! shows as a table.
//!
//! `cargo bench --profile dev -p podwire --bench programs [-- --runs 1000000 --cpu 1 --only from_pod]`, as root: what is measured runs in the
//! kernel, however this program is compiled. Each packet is sent by a system call of its own, so that each begins from the same bytes and
//! the same maps; what a first packet leaves behind is removed before the next. Of packets whose flow is known, one in a part of a second is
//! judged anew, as it is on a node. The statistics read the clock twice for each packet, which is part of every figure: the program `empty`,
//! which does nothing, shows how much.

#[path = "../tests/prog/counting.rs"]
mod counting;
#[path = "../tests/prog/fixture.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod fixture;
#[path = "../tests/prog/kind.rs"]
mod kind;
#[path = "../tests/prog/kinds.rs"]
mod kinds;
#[path = "../tests/prog/known_kinds.rs"]
mod known_kinds;
#[path = "../tests/prog/namespace.rs"]
mod namespace;
#[path = "../tests/prog/packets.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod packets;
#[path = "../tests/prog/pool.rs"]
mod pool;

use anyhow::{Context as _, Result, ensure};
use aya::sys::{Stats, enable_stats};
use clap::Parser as _;
use podwire::dataplane::load;
use podwire_common::names::programs::EMPTY;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use counting::{Calls, Counts};
use fixture::Fixture;
use kind::{Kind, Link};

/// A figure is the median of so many.
const BLOCKS: usize = 11;

#[derive(clap::Parser)]
struct Options {
    /// Packets of each kind.
    #[arg(long, default_value_t = 1_000_000)]
    runs: usize,
    /// The CPU that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Only kinds whose program and name, with a colon between, contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Serialize)]
struct Cost {
    program: &'static str,
    kind: String,
    /// Packets.
    runs: usize,
    /// Of one packet: the median of the blocks, the least and the most.
    ns: f64,
    ns_least: f64,
    ns_most: f64,
    /// Of the whole program, as the kernel has translated it: not of the way that this packet takes.
    instructions: u32,
    /// Calls for one packet, but for those that the kernel inlines.
    helper_calls: u64,
    /// Those of them that look for a key in a map.
    map_lookups: u64,
    calls: Calls,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .context("ask for the compiler of BPF")?;
    ensure!(jit.trim() != "0", "programs are interpreted here (net.core.bpf_jit_enable is 0)");
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("stay on CPU {}", options.cpu))?;
    let _statistics =
        enable_stats(Stats::RunTime).context("enable the kernel's statistics (are we root?)")?;
    let nothing = Kind::new(EMPTY, "nothing: the statistics alone", Link::Uplink, vec![0; 64], None);
    let mut costs = vec![measure(&nothing, &mut nothing.setting.node(counting::load), &options, None)?];
    for (setting, kinds) in kinds::by_setting() {
        let is_wanted = |kind: &Kind| format!("{}: {}", kind.program, kind.name).contains(&options.only);
        let kinds: Vec<_> = kinds.into_iter().filter(is_wanted).collect();
        if kinds.is_empty() {
            continue;
        }
        let mut node = setting.node(counting::load);
        let counts: Vec<_> = kinds.iter().map(|kind| Counts::of(kind, &mut node)).collect();
        drop(node);
        let mut node = setting.node(|config| load::load(config, &[], None).expect("the programs load"));
        for (kind, counts) in kinds.iter().zip(counts) {
            costs.push(measure(kind, &mut node, &options, Some(counts))?);
        }
    }
    println!("{}", serde_json::to_string_pretty(&costs)?);
    Ok(())
}

fn measure(kind: &Kind, node: &mut Fixture, options: &Options, counts: Option<Counts>) -> Result<Cost> {
    let what = format!("{}: {}", kind.program, kind.name);
    eprintln!("{what}");
    let instructions = translated(node, kind.program)?;
    let runs = options.runs.div_ceil(BLOCKS);
    let mut ready = kind.on(node);
    let mut blocks = Vec::new();
    // One block more, in which caches get warm.
    for _ in 0..=BLOCKS {
        let (time, count) = statistics(ready.node, kind.program)?;
        ready.send(runs);
        let (time_after, count_after) = statistics(ready.node, kind.program)?;
        ensure!(count_after - count == runs as u64, "{what}: the program ran {} times", count_after - count);
        blocks.push((time_after - time) as f64 / runs as f64);
    }
    blocks.remove(0);
    blocks.sort_by(f64::total_cmp);
    let sum =
        |of: fn(podwire_common::helper::Helper) -> bool| counts.as_ref().map_or(0, |counts| counts.sum(of));
    Ok(Cost {
        program: kind.program,
        kind: kind.name.clone(),
        runs: runs * BLOCKS,
        ns: tenths(blocks[BLOCKS / 2]),
        ns_least: tenths(blocks[0]),
        ns_most: tenths(blocks[BLOCKS - 1]),
        instructions,
        helper_calls: sum(|helper| !helper.is_inlined()),
        map_lookups: sum(podwire_common::helper::Helper::is_map_lookup),
        calls: counts.as_ref().map(Counts::by_name).unwrap_or_default(),
    })
}

/// Nanoseconds and runs so far.
fn statistics(node: &Fixture, program: &str) -> Result<(u128, u64)> {
    let info = node.loaded.ebpf.program(program).context("no such program")?.info()?;
    Ok((info.run_time().as_nanos(), info.run_count()))
}

fn translated(node: &Fixture, program: &str) -> Result<u32> {
    let info = node.loaded.ebpf.program(program).context("no such program")?.info()?;
    Ok(info.size_translated().context("the kernel does not say how large the program is")? / 8)
}

fn tenths(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}
