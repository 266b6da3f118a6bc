//! `docs/drop-reasons.md`, made from the variants in `common/src/reason.rs`.

use podwire_common::reason::{Drop, Path};

/// The document.
pub(crate) const DOCUMENT: &str = "docs/drop-reasons.md";
const HEAD: &str = "\
# Reasons and paths

<!-- Written by `cargo xtask docs` from common/src/reason.rs. -->

For operators who ask why a packet was dropped, or which way packets went.

## Reasons

The programs count each packet that they drop under one of these reasons. The number is the key in
the map `DROPS` ([inspect.md](inspect.md#why-was-a-packet-dropped)), the name is the label `reason`
of the metrics. A number is never used for another reason. Where the last column is empty, the
sender is at fault, or [limits.md](limits.md) has the subject. [attacks.md](attacks.md) shows which
packets were tried.

| number | reason | meaning | what to do |
|---|---|---|---|
";
const PATHS: &str = "
## Paths

The programs count the packets that they handle by path: in the map `TRAFFIC`, and under the label
`path` of the metrics.

| number | path | meaning |
|---|---|---|
";

/// Returns the whole document.
pub(crate) fn page() -> String {
    let reasons = Drop::ALL.iter().map(|reason| {
        let remedy = reason.remedy().unwrap_or_default();
        format!("{} {remedy} |\n", row(*reason as u32, reason.name(), reason.documentation()))
    });
    let paths =
        Path::ALL.iter().map(|path| format!("{}\n", row(*path as u32, path.name(), path.documentation())));
    format!("{HEAD}{}{PATHS}{}", reasons.collect::<String>(), paths.collect::<String>())
}

fn row(number: u32, name: &str, documentation: &[&str]) -> String {
    format!("| {number} | `{name}` | {} |", documentation.concat().trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_reasons_are_those_of_the_programs() {
        let text = std::fs::read_to_string(crate::run::root().join(DOCUMENT)).unwrap_or_default();
        assert!(text == page(), "{DOCUMENT} is stale: run `cargo xtask docs`");
    }
}
