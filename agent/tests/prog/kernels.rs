//! The verifier's counts for each program on each kernel, compared with the record in
//! `kernels.json` and with the verifier's limit. `cargo xtask test --kernel 6.1` runs this on
//! another kernel than this machine's.

use std::collections::BTreeMap;
use std::{env, fs};

use podwire_core::model::Mode;
use serde::{Deserialize, Serialize};

use crate::costs::{BuiltBy, RECORD_ANEW, say, with_all_parts};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/prog/kernels.json");
/// The number of instructions after which the verifier gives up (`BPF_COMPLEXITY_LIMIT_INSNS` of
/// `linux/bpf.h`).
const LIMIT: u32 = 1_000_000;
/// The part of the limit at which the test fails, in percent. The next point release may count
/// more.
const ALARM: u32 = 70;
/// How much a program may grow past its record, in percent. Point releases of a kernel differ a
/// little.
const TOLERANCE: u32 = 10;

#[derive(Serialize, Deserialize, Default)]
struct Record {
    compiler: String,
    linker: String,
    /// Programs by the kernel's major and minor version, and by mode.
    kernels: BTreeMap<String, BTreeMap<String, Programs>>,
}

type Programs = BTreeMap<String, Size>;

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    /// Instructions as the kernel has translated them, with the functions that the program calls.
    translated: u32,
    /// Instructions that the verifier has walked through, on all paths through the program.
    verified: u32,
}

#[test]
fn every_program_is_far_from_the_verifiers_limit() {
    let built_by = BuiltBy::now();
    let now: BTreeMap<_, _> = [("vxlan", Mode::Vxlan), ("direct", Mode::Direct)]
        .map(|(name, mode)| (name.to_owned(), sizes(mode)))
        .into();
    let mut record: Record = fs::read_to_string(RECORD).map_or_else(
        |_| Record::default(),
        |text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("decode {RECORD}: {error}")),
    );
    if env::var_os(RECORD_ANEW).is_some() {
        (record.compiler, record.linker) = (built_by.compiler, built_by.linker);
        record.kernels.insert(built_by.kernel, now.clone());
        fs::write(RECORD, serde_json::to_string_pretty(&record).unwrap() + "\n").unwrap();
        say(&format!("{RECORD} has the new counts"));
    } else if (&record.compiler, &record.linker) != (&built_by.compiler, &built_by.linker) {
        say(&format!("WARNING: programs are not compared with {RECORD}: another toolchain recorded it"));
    } else if let Some(recorded) = record.kernels.get(&built_by.kernel) {
        let grown = grown(recorded, &now);
        assert!(
            grown.is_empty(),
            "programs have grown on Linux {}. If this is intended, record what CONTRIBUTING.md lists under \"Some files are made by commands\"\n{}",
            built_by.kernel,
            grown.join("\n")
        );
    } else {
        say(&format!("WARNING: {RECORD} has no Linux {}", built_by.kernel));
    }
    let alarming = alarming(&now);
    assert!(
        alarming.is_empty(),
        "the verifier gives up after {LIMIT} instructions; these programs take more than {ALARM} % of that:\n{}",
        alarming.join("\n")
    );
}

fn sizes(mode: Mode) -> Programs {
    const BYTES: u32 = 8;
    let node = with_all_parts(mode);
    let programs = node.loaded.ebpf.programs();
    let sizes = programs.map(|(name, program)| {
        let info = program.info().unwrap();
        let translated = info.size_translated().expect("root sees every program") / BYTES;
        let verified = info.verified_instruction_count().expect("the kernel counts them since 5.16");
        (name.to_owned(), Size { translated, verified })
    });
    sizes.collect()
}

/// Returns a line for each program that has grown past its record, and for each program without a
/// record.
fn grown(recorded: &BTreeMap<String, Programs>, now: &BTreeMap<String, Programs>) -> Vec<String> {
    let is_more = |recorded: u32, now: u32| now > recorded + recorded * TOLERANCE / 100;
    let mut lines = Vec::new();
    for (mode, programs) in now {
        for (name, now) in programs {
            match recorded.get(mode).and_then(|programs| programs.get(name)) {
                None => lines.push(format!("{mode} {name}: not recorded, {now:?} now")),
                Some(recorded)
                    if is_more(recorded.translated, now.translated)
                        || is_more(recorded.verified, now.verified) =>
                {
                    lines.push(format!("{mode} {name}: {recorded:?} recorded, {now:?} now"));
                }
                Some(_) => {}
            }
        }
    }
    lines
}

/// Returns a line for each program that is near the limit.
fn alarming(now: &BTreeMap<String, Programs>) -> Vec<String> {
    let programs =
        now.iter().flat_map(|(mode, programs)| programs.iter().map(move |(name, size)| (mode, name, size)));
    programs
        .filter(|(.., size)| size.verified > LIMIT / 100 * ALARM)
        .map(|(mode, name, size)| format!("{mode} {name}: {}", size.verified))
        .collect()
}

#[test]
fn growth_and_the_limits_nearness_are_told() {
    let of = |translated, verified| {
        let programs = Programs::from([("from_pod".to_owned(), Size { translated, verified })]);
        BTreeMap::from([("vxlan".to_owned(), programs)])
    };
    let recorded = of(1000, 10_000);
    assert!(grown(&recorded, &of(1100, 11_000)).is_empty() && grown(&recorded, &of(1, 1)).is_empty());
    for now in [of(1101, 10_000), of(1000, 11_001)] {
        assert_eq!(grown(&recorded, &now).len(), 1, "{now:?}");
    }
    assert_eq!(grown(&BTreeMap::new(), &recorded).len(), 1);
    assert!(alarming(&of(1000, 700_000)).is_empty());
    assert_eq!(alarming(&of(1000, 700_001)), ["vxlan from_pod: 700001"]);
}
