//! Finds or installs what builds, the demonstration and the tests need. `cargo xtask setup` does
//! all of it.

use std::time::Instant;

use anyhow::Result;

use crate::packages::{self, Package};
use crate::toolchain::Toolchain;

/// Finds or installs the BPF toolchain and the tools of the demonstration.
pub(crate) fn for_demonstration() -> Result<Toolchain> {
    tools(&[&packages::DEMONSTRATION])
}

/// Finds or installs the BPF toolchain and the tools of the demonstration and the tests.
pub(crate) fn everything() -> Result<Toolchain> {
    tools(&[&packages::DEMONSTRATION, &packages::TESTS])
}

fn tools(lists: &[&[Package]]) -> Result<Toolchain> {
    let start = Instant::now();
    let toolchain = Toolchain::ensure()?;
    lists.iter().try_for_each(|packages| packages::ensure(packages))?;
    eprintln!("set up: {toolchain}; every tool is there ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(toolchain)
}
