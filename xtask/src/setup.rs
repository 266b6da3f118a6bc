//! `cargo xtask setup`: finds or installs what builds, demonstration and tests need.

use std::time::Instant;

use anyhow::Result;

use crate::packages;
use crate::toolchain::Toolchain;

/// Finds or installs the BPF toolchain and the tools for demonstration and tests.
pub(crate) fn everything() -> Result<Toolchain> {
    let start = Instant::now();
    let toolchain = Toolchain::ensure()?;
    packages::ensure(&packages::TOOLS)?;
    eprintln!("set up: {toolchain}; every tool is there ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(toolchain)
}
