//! Finds or installs what builds, the demonstration and the tests need. `cargo xtask setup` does
//! all of it.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use xtask::prometheus::{self, PACKAGE, PROGRAMS};

use crate::packages::{self, Package};
use crate::run;
use crate::toolchain::Toolchain;

/// Finds or installs the BPF toolchain and the tools of the demonstration.
pub(crate) fn for_demonstration() -> Result<Toolchain> {
    tools(&[&packages::DEMONSTRATION])
}

/// Finds or installs the BPF toolchain and the tools of the demonstration and the tests.
pub(crate) fn everything() -> Result<Toolchain> {
    let toolchain = tools(&[&packages::DEMONSTRATION, &packages::TESTS])?;
    prometheus()?;
    Ok(toolchain)
}

/// Finds or unpacks Prometheus, which a test runs.
fn prometheus() -> Result<()> {
    let folder = prometheus::folder();
    if folder.is_dir() || PROGRAMS.iter().all(|name| packages::find_program(name).is_some()) {
        return Ok(());
    }
    if !packages::can_install() {
        bail!("install {}, which a test runs, or run this on Debian as root", PROGRAMS.join(" and "));
    }
    let tools = folder.parent().context("the folder of tools")?;
    fs::create_dir_all(tools).with_context(|| format!("create {}", tools.display()))?;
    run::step(&format!("fetch Debian's {PACKAGE}"), || {
        // Old package lists name a version that Debian has removed.
        packages::unpack(PACKAGE, &folder).or_else(|_| {
            packages::update()?;
            packages::unpack(PACKAGE, &folder)
        })
    })
}

fn tools(lists: &[&[Package]]) -> Result<Toolchain> {
    let start = Instant::now();
    let toolchain = Toolchain::ensure()?;
    lists.iter().try_for_each(|packages| packages::ensure(packages))?;
    eprintln!("set up: {toolchain}; every tool is there ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(toolchain)
}
