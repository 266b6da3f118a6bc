//! The table "Maps" of ARCHITECTURE.md, made from the rows of `common/src/tables.rs`.

use anyhow::{Context as _, Result};
use podwire_common::tables::{Row, Share, Table};

/// The document with the table.
pub(crate) const DOCUMENT: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- Written by `cargo xtask docs`. -->\n";
const END: &str = "<!-- End of what is written. -->\n";
const HEAD: &str = "
| map | kind | entries | filled by | share of an endpoint | key → value |
|---|---|---|---|---|---|
";

/// Returns the document with the current table.
pub(crate) fn renewed(text: &str) -> Result<String> {
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
        let text = std::fs::read_to_string(crate::run::root().join(DOCUMENT)).unwrap();
        assert!(renewed(&text).unwrap() == text, "{DOCUMENT} is stale: run `cargo xtask docs`");
    }
}
