//! Measures the cost of a packet in each program, in nanoseconds, with the kernel's own statistics.
//! Prints one JSON list. `cargo xtask bench programs` shows it as a table.
//!
//! Run it as root. The profile does not matter, because the measured programs run in the kernel:
//!
//! ```text
//! cargo bench --profile dev -p podwire --bench programs
//!     [-- --runs 1000000 --cpu 1 --only from_pod]
//! ```
//!
//! A separate system call sends each packet, so each packet begins with the same bytes and the same
//! maps. Before the benchmark sends the next packet, it removes the entries that a first packet has
//! added. The entry of a known flow gets too old after a part of a second. Then the program judges
//! one packet of the flow again, as it does on a node.
//!
//! The statistics read the clock twice for each packet. Every figure includes this time. The figure
//! of the program `empty`, which does nothing, shows how much it is.

#[path = "../tests/prog/counting.rs"]
mod counting;
#[path = "../tests/prog/family.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod family;
#[path = "../tests/prog/fixture.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod fixture;
#[path = "../tests/prog/fixture6.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod fixture6;
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
#[path = "../tests/prog/packets6.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod packets6;
#[path = "../tests/prog/pool.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod pool;
#[path = "../tests/prog/records.rs"]
#[expect(dead_code, reason = "the packet tables use the rest")]
mod records;
#[path = "../tests/prog/service_kinds.rs"]
mod service_kinds;

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

/// Number of blocks of packets. A figure is the median of its blocks.
const BLOCKS: usize = 11;

#[derive(clap::Parser)]
struct Options {
    /// Packets of each kind.
    #[arg(long, default_value_t = 1_000_000)]
    runs: usize,
    /// The CPU that everything runs on.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Measure only the kinds with this text in `program: name`.
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
    /// Time for one packet: median, smallest and largest figure of the blocks.
    ns: f64,
    ns_least: f64,
    ns_most: f64,
    /// Instructions of the whole program after the kernel has translated it. A packet runs only a
    /// part of them.
    instructions: u32,
    /// Calls for one packet, except array lookups and tail calls, which the kernel inlines.
    helper_calls: u64,
    /// The calls among them that look up a key in a map.
    map_lookups: u64,
    calls: Calls,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let jit = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .context("read whether the kernel compiles BPF programs")?;
    ensure!(
        jit.trim() != "0",
        "the kernel interprets BPF programs here (net.core.bpf_jit_enable is 0): set it to 1"
    );
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu);
    sched_setaffinity(None, &cpus).with_context(|| format!("stay on CPU {}", options.cpu))?;
    let _statistics =
        enable_stats(Stats::RunTime).context("enable the kernel's statistics (are we root?)")?;
    let nothing = Kind::new(EMPTY, "nothing: the statistics alone", Link::Uplink, vec![0; 64], None);
    let mut costs = vec![measure(&nothing, &mut nothing.setting.node(counting::take), &options, None)?];
    for (setting, kinds) in kinds::by_setting() {
        let is_wanted = |kind: &Kind| format!("{}: {}", kind.program, kind.name).contains(&options.only);
        let kinds: Vec<_> = kinds.into_iter().filter(is_wanted).collect();
        if kinds.is_empty() {
            continue;
        }
        let mut node = setting.node(counting::take);
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
