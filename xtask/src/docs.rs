//! `cargo xtask docs`: writes what the documents show but no one types: the picture, the table of
//! maps, reasons, metrics, and what commands print.

use std::fs;

use anyhow::{Context as _, Result};
use xtask::{picture, transcripts};

use crate::{build, reasons, run, setup, tables};

/// Writes everything.
pub(crate) fn write() -> Result<()> {
    for palette in &picture::PALETTES {
        save(palette.path, &picture::draw(palette))?;
    }
    replace(tables::DOCUMENT, tables::renewed)?;
    save(reasons::DOCUMENT, &reasons::page())?;
    build::object(&setup::everything()?)?;
    write_metrics()?;
    build::lab_binaries()?;
    let recorded = run::step("what commands print, on two nodes", transcripts::record)?;
    for transcript in &recorded {
        replace(transcript.document, |text| transcripts::renewed(text, transcript))?;
    }
    Ok(())
}

/// Writes `docs/metrics.md`. The agent's registry has the metrics, so a test of the agent writes them.
fn write_metrics() -> Result<()> {
    let mut command = run::cargo(&["test", "--quiet", "--package", "podwire", "--lib", "documented"]);
    run::step("the agent's metrics", || run::visibly(command.env("PODWIRE_WRITE_DOCS", "1")))
}

/// Replaces a document by what `new` makes of its text.
fn replace(path: &str, new: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let old = fs::read_to_string(run::root().join(path)).with_context(|| format!("read {path}"))?;
    save(path, &new(&old)?)
}

fn save(path: &str, text: &str) -> Result<()> {
    let file = run::root().join(path);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("write {path}"))?;
    println!("{path}");
    Ok(())
}
