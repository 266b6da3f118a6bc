//! `cargo xtask docs`: writes what the documents show but no one types: the picture, the table of
//! maps, and what commands print.

use std::fs;

use anyhow::{Context as _, Result};
use xtask::{picture, transcripts};

use crate::{build, run, setup, tables};

/// Writes everything.
pub(crate) fn write() -> Result<()> {
    for palette in &picture::PALETTES {
        replace(palette.path, |_| Ok(picture::draw(palette)))?;
    }
    replace(tables::DOCUMENT, tables::renewed)?;
    build::object(&setup::everything()?)?;
    build::lab_binaries()?;
    let recorded = run::step("what commands print, on two nodes", transcripts::record)?;
    for transcript in &recorded {
        replace(transcript.document, |text| transcripts::renewed(text, transcript))?;
    }
    Ok(())
}

/// Replaces a file of the repository by what `new` makes of its text. The file may be absent.
fn replace(path: &str, new: impl FnOnce(&str) -> Result<String>) -> Result<()> {
    let file = run::root().join(path);
    let old = fs::read_to_string(&file).unwrap_or_default();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(&file, new(&old)?).with_context(|| format!("write {path}"))?;
    println!("{path}");
    Ok(())
}
