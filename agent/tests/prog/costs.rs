//! The cost of a packet, compared with the record in `costs.json`: helper calls of each kind of
//! packet, and instructions of each program. These are counts, not times. A change that increases
//! them updates the record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::{env, fs};

use podwire_common::abi;
use podwire_common::helper::Helper;
use podwire_common::reason::Path;
use podwire_core::model::Mode;
use serde::{Deserialize, Serialize};

use crate::counting::{self, Calls, Counts};
use crate::fixture::Fixture;
use crate::kind::Known;
use crate::kinds::by_setting;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/prog/costs.json");
/// The file that names the object's compiler and linker, a line each.
const TOOLCHAIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/toolchain");
/// The variable that asks for a new record instead of a comparison.
pub const RECORD_ANEW: &str = "PODWIRE_RECORD";

#[derive(Serialize, Deserialize)]
struct Costs {
    /// The tools and the kernel on which the number of instructions depends.
    built_by: BuiltBy,
    /// Instructions by mode and program, as the kernel has translated them, with the functions that
    /// the program calls.
    instructions: BTreeMap<String, BTreeMap<String, u64>>,
    /// Calls by program, kind of packet and helper.
    helper_calls: BTreeMap<String, BTreeMap<String, Calls>>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq)]
pub struct BuiltBy {
    pub compiler: String,
    pub linker: String,
    /// The kernel's major and minor version: its verifier replaces some instructions with its own.
    pub kernel: String,
}

#[test]
fn a_packet_costs_what_is_recorded() {
    let now = Costs { built_by: BuiltBy::now(), instructions: instructions(), helper_calls: helper_calls() };
    if env::var_os(RECORD_ANEW).is_some() {
        fs::write(RECORD, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
        say(&format!("{RECORD} has the new counts"));
        return;
    }
    let text = fs::read_to_string(RECORD).unwrap_or_else(|error| panic!("read {RECORD}: {error}"));
    let mut recorded: Costs =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("decode {RECORD}: {error}"));
    if recorded.built_by.kernel != now.built_by.kernel {
        // The programs of an older kernel leave some kinds of packets to a device.
        for (program, kinds) in &mut recorded.helper_calls {
            kinds.retain(|kind, _| now.helper_calls[program].contains_key(kind));
        }
    }
    let mut differences = Vec::new();
    for (program, [recorded, now]) in both(&recorded.helper_calls, &now.helper_calls) {
        for (kind, [recorded, now]) in both(&recorded, &now) {
            differences.extend(compare(&format!("{program}: {kind}"), &recorded, &now));
        }
    }
    if recorded.built_by == now.built_by {
        for (mode, [recorded, now]) in both(&recorded.instructions, &now.instructions) {
            differences.extend(compare(&format!("instructions, {mode}"), &recorded, &now));
        }
    } else {
        say(&format!(
            "WARNING: the numbers of INSTRUCTIONS ARE NOT COMPARED, helper calls are.\n  recorded with {}\n  built with    {}",
            recorded.built_by, now.built_by
        ));
    }
    assert!(
        differences.is_empty(),
        "packets cost more or less than the record says. If this is intended, record what CONTRIBUTING.md lists under \"Some files are made by commands\"\n{}",
        table(&differences)
    );
}

fn helper_calls() -> BTreeMap<String, BTreeMap<String, Calls>> {
    let mut all: BTreeMap<String, BTreeMap<String, Calls>> = BTreeMap::new();
    for (setting, kinds) in by_setting() {
        let mut node = setting.node(counting::take);
        for kind in kinds {
            let counts = Counts::of(&kind, &mut node);
            if kind.known == Known::Now {
                // A tunnel packet's destination is compared with the uplink's entry in `LINKS` or
                // `LINKS6`.
                let links = u64::from(kind.path == Some(Path::TunnelIn));
                let lookups = counts.sum(Helper::is_map_lookup);
                assert_eq!(lookups, 1 + links, "{}: {}: lookups of a known flow", kind.program, kind.name);
            }
            let other =
                all.entry(kind.program.into()).or_default().insert(kind.name.clone(), counts.by_name());
            assert!(other.is_none(), "two kinds are called {}: {}", kind.program, kind.name);
        }
    }
    all
}

fn instructions() -> BTreeMap<String, BTreeMap<String, u64>> {
    const BYTES: u32 = 8;
    let of = |mode| {
        let node = with_all_parts(mode);
        let programs = node.loaded.ebpf.programs();
        let sizes = programs.map(|(name, program)| {
            let bytes = program.info().unwrap().size_translated().expect("root sees every program");
            (name.to_owned(), u64::from(bytes / BYTES))
        });
        sizes.collect()
    };
    [("vxlan", Mode::Vxlan), ("direct", Mode::Direct)].map(|(name, mode)| (name.to_owned(), of(mode))).into()
}

/// Returns a node with all parts of the programs. The verifier removes code that the configuration
/// rules out, so `netns_cookie` and `services` must not be 0 here.
pub fn with_all_parts(mode: Mode) -> Fixture {
    Fixture::with_config(mode, |config| abi::Config { netns_cookie: 1, services: 1, ..*config })
}

impl BuiltBy {
    pub fn now() -> Self {
        let text = fs::read_to_string(TOOLCHAIN).unwrap_or_else(|error| {
            panic!("read {TOOLCHAIN}: {error}: `cargo xtask build` leaves it beside the object")
        });
        let (compiler, linker) =
            text.trim().split_once('\n').expect("a line for the compiler, one for the linker");
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let kernel = release.split('.').take(2).collect::<Vec<_>>().join(".");
        Self { compiler: compiler.into(), linker: linker.into(), kernel }
    }
}

impl std::fmt::Display for BuiltBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, for Linux {}", self.compiler, self.linker, self.kernel)
    }
}

/// Returns the keys of both maps, with the two values. A missing value is the default.
fn both<T: Clone + Default>(one: &BTreeMap<String, T>, other: &BTreeMap<String, T>) -> Vec<(String, [T; 2])> {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let values = |key| [one, other].map(|map| map.get(key).cloned().unwrap_or_default());
    keys.into_iter().map(|key| (key.clone(), values(key))).collect()
}

/// The kind of count, the counted item, the recorded count, and the count now.
type Difference = (String, String, u64, u64);

fn compare(what: &str, recorded: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>) -> Vec<Difference> {
    let all = both(recorded, now).into_iter();
    all.filter(|(_, [recorded, now])| recorded != now)
        .map(|(of, [recorded, now])| (what.to_owned(), of, recorded, now))
        .collect()
}

fn table(differences: &[Difference]) -> String {
    let width = |texts: &mut dyn Iterator<Item = &String>| texts.map(String::len).max().unwrap_or_default();
    let what = width(&mut differences.iter().map(|line| &line.0));
    let of = width(&mut differences.iter().map(|line| &line.1));
    let mut text = format!("{:what$}  {:of$}  {:>8}  {:>8}\n", "", "", "recorded", "now");
    for (packet, name, recorded, now) in differences {
        writeln!(text, "{packet:what$}  {name:of$}  {recorded:>8}  {now:>8}").unwrap();
    }
    text
}

/// Prints past the test harness, which hides the output of a test that passes.
pub fn say(text: &str) {
    std::io::stderr().write_all(format!("\n{text}\n\n").as_bytes()).unwrap();
}

#[test]
fn every_difference_is_a_line() {
    let counts = |counts: &[(&str, u64)]| {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect::<BTreeMap<_, _>>()
    };
    let recorded = counts(&[("gone", 1), ("more", 2), ("same", 3)]);
    let now = counts(&[("more", 4), ("new", 5), ("same", 3)]);
    let lines = table(&compare("packet", &recorded, &now));
    let lines: Vec<Vec<_>> = lines.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [["packet", "gone", "1", "0"], ["packet", "more", "2", "4"], ["packet", "new", "0", "5"]]
    );
}
