//! Pinned maps, read with bpftool as an operator reads them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use podwire_common::helper::{HELPER_CALLS, Helper};
use serde_json::Value;

use crate::lab::process;

/// Packets and bytes of a counter, summed over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets. A large segment counts as one.
    pub packets: u64,
    /// Bytes of the frames.
    pub bytes: u64,
}

/// Returns the entries of a pinned map.
pub(crate) fn dump(pin: &Path) -> Result<Value> {
    let mut dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()])?;
    if let Some(entries) = dump.as_array_mut() {
        // bpftool reads a key first, then its value. If the agent or a program removes the entry in
        // between, bpftool prints an error in the place of the value.
        entries.retain(|entry| entry["value"]["error"].is_null());
    }
    Ok(dump)
}

/// Returns how often a helper was called. The counts are in a map of the pinned link's program.
pub(crate) fn helper_calls(link: &Path, helper: Helper) -> Result<u64> {
    let number = |value: &Value, field: &str| {
        value[field]
            .as_u64()
            .map(|number| number.to_string())
            .with_context(|| format!("no {field} in {value}"))
    };
    let link = bpftool(&["link", "show", "pinned", &link.to_string_lossy()])?;
    let program = bpftool(&["prog", "show", "id", &number(&link, "prog_id")?])?;
    let ids = program["map_ids"].as_array().with_context(|| format!("no maps in {program}"))?;
    for id in ids {
        let map = bpftool(&["map", "show", "id", &id.to_string()])?;
        if map["name"].as_str().is_some_and(|name| name.ends_with(HELPER_CALLS)) {
            let calls = bpftool(&["map", "lookup", "id", &id.to_string(), "key", "0", "0", "0", "0"])?;
            let bytes: Option<Vec<u8>> =
                calls["value"].as_array().and_then(|bytes| bytes.iter().map(byte).collect());
            let counts = bytes.with_context(|| format!("no bytes in {calls}"))?;
            let (counts, _) = counts.as_chunks::<8>();
            return counts.get(helper as usize).copied().map(u64::from_ne_bytes).context("too few counts");
        }
    }
    bail!("the programs do not count helper calls")
}

fn byte(text: &Value) -> Option<u8> {
    u8::from_str_radix(text.as_str()?.strip_prefix("0x")?, 16).ok()
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let mut command = Command::new("bpftool");
    command.arg("--json").args(arguments);
    let what = arguments.join(" ");
    let output = process::output(&mut command, None, Duration::from_secs(60))
        .context("run bpftool (Debian package bpftool)")?;
    if !output.status.success() {
        bail!("`bpftool {what}` failed: {}", String::from_utf8_lossy(&output.stdout));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("decode what `bpftool {what}` says"))
}

/// Reads a per-CPU array of counters. Leaves out slots without a name, and slots that are zero.
pub(crate) fn read(
    pin: &Path,
    names: impl Iterator<Item = (u32, &'static str)>,
) -> Result<BTreeMap<&'static str, Counts>> {
    let sums = sum(&dump(pin)?).with_context(|| format!("read counters of {}", pin.display()))?;
    Ok(names.filter_map(|(slot, name)| Some((name, *sums.get(&u64::from(slot))?))).collect())
}

fn sum(dump: &Value) -> Result<BTreeMap<u64, Counts>> {
    let mut sums = BTreeMap::new();
    for entry in dump.as_array().context("the dump is no list")? {
        let entry = entry.get("formatted").context("the map has no BTF")?;
        let slot = entry["key"].as_u64().context("a key that is no number")?;
        let mut counts = Counts::default();
        for cpu in entry["values"].as_array().context("no values per CPU")? {
            let number =
                |field: &str| cpu["value"][field].as_u64().with_context(|| format!("no {field} in {cpu}"));
            counts.packets += number("packets")?;
            counts.bytes += number("bytes")?;
        }
        if counts != Counts::default() {
            sums.insert(slot, counts);
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_summed_over_cpus_and_empty_slots_left_out() {
        let dump = json!([
            {"formatted": {"key": 0, "values": [{"cpu": 0, "value": {"packets": 0, "bytes": 0}}]}},
            {"formatted": {"key": 4, "values": [
                {"cpu": 0, "value": {"packets": 2, "bytes": 200}},
                {"cpu": 1, "value": {"packets": 1, "bytes": 60}},
            ]}},
        ]);
        assert_eq!(sum(&dump).unwrap(), BTreeMap::from([(4, Counts { packets: 3, bytes: 260 })]));
    }

    #[test]
    fn a_map_without_btf_is_an_error() {
        let error = sum(&json!([{"key": ["0x00"], "values": []}])).unwrap_err();
        assert!(error.to_string().contains("no BTF"), "{error}");
    }
}
