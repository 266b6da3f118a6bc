//! `cargo xtask tables`: writes the table "Maps" of ARCHITECTURE.md from the rows of
//! `common/src/tables.rs`.

use std::fs;

use anyhow::{Context as _, Result};
use podwire_common::tables::{Row, Share, Table};

use crate::run;

const DOCUMENT: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- Written by `cargo xtask tables`. -->\n";
const END: &str = "<!-- End of what is written. -->\n";
const HEAD: &str = "
| map | kind | entries | filled by | share of an endpoint | key → value |
|---|---|---|---|---|---|
";

/// Writes the table into the document.
pub(crate) fn write() -> Result<()> {
    let path = run::root().join(DOCUMENT);
    let text = fs::read_to_string(&path).context("read ARCHITECTURE.md")?;
    fs::write(&path, renewed(&text)?).context("write ARCHITECTURE.md")
}

/// Returns the document with the current table.
fn renewed(text: &str) -> Result<String> {
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        parts.with_context(|| format!("{DOCUMENT} has no place for the table: {BEGIN}{END}"))?;
    let rows: String = Table::ALL.iter().map(|table| line(table.row())).collect();
    Ok(format!("{before}{BEGIN}{HEAD}{rows}\n{END}{after}"))
}

fn line(row: &Row) -> String {
    let option = row.option.map(|field| format!(", `--{}`", field.replace('_', "-")));
    let share = match row.share {
        Share::Unlimited => "",
        Share::AsMuchAsIsFree(_) => "as much as is free",
    };
    let documentation = row.documentation.concat();
    format!(
        "| `{}` | {} | {}{} | {} | {share} | {} |\n",
        row.name,
        row.kind.name(),
        row.entries,
        option.unwrap_or_default(),
        row.owner.name(),
        documentation.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_maps_are_those_of_the_rows() {
        let text = fs::read_to_string(run::root().join(DOCUMENT)).unwrap();
        assert!(renewed(&text).unwrap() == text, "{DOCUMENT} is stale: run `cargo xtask tables`");
    }
}
