//! Pinned maps, read the way an operator reads them: through bpftool.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::process;

/// What was counted, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets; a large segment counts as one.
    pub packets: u64,
    /// Bytes of frame.
    pub bytes: u64,
}

pub(crate) fn dump(pin: &Path) -> Result<Value> {
    let mut command = Command::new("bpftool");
    command.args(["--json", "map", "dump", "pinned"]).arg(pin);
    let output = process::output(&mut command, None, Duration::from_secs(60))
        .context("run bpftool (Debian package bpftool)")?;
    if !output.status.success() {
        bail!(
            "`bpftool map dump pinned {}` failed: {}",
            pin.display(),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("decode bpftool's dump of {}", pin.display()))
}

/// A per-CPU array of counts; slots without a name or with nothing counted are left out.
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
