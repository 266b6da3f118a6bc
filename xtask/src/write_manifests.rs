//! `cargo xtask manifests`: writes the files that are made from the chart and the agent's help.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use xtask::manifests;

use crate::{build, run, setup};

/// Writes all files. The chart's list of options comes first, because the manifests are rendered
/// from the chart with it.
pub(crate) fn run() -> Result<()> {
    build::object(&setup::everything()?)?;
    let agent = build::lab_binaries()?.join("podwire");
    let help = run::captured(Command::new(agent).args(["agent", "--help"]))?;
    let (path, text) = manifests::reference(&help)?;
    let write = |path: &std::path::Path, text: &str| {
        println!("{}", path.display());
        fs::write(run::root().join(path), text).with_context(|| format!("write {}", path.display()))
    };
    write(&path, &text)?;
    for (path, text) in manifests::for_kubectl()? {
        write(&path, &text)?;
    }
    Ok(())
}
