//! `cargo xtask check`: formatting, lints, layer rules.

use anyhow::Result;

use crate::toolchain::Toolchain;
use crate::{build, layers, run};

/// All of them; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    // The agent embeds the object: without it, clippy cannot even run its build script.
    build::object(&Toolchain::ensure()?)?;
    run::step("cargo fmt --check", || run::visibly(&mut run::cargo(&["fmt", "--all", "--check"])))?;
    run::step("layer rules", layers::check)?;
    run::step("cargo clippy", || {
        run::visibly(&mut run::cargo(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    // For the host: not every BPF toolchain has a clippy. The object aborts on panic, as it does in the kernel.
    for features in ["", build::COUNT_HELPERS] {
        run::step(&format!("cargo clippy (BPF object, features: {features:?})"), || {
            let arguments = ["clippy", "--quiet", "--package", "podwire-ebpf", "--features", features];
            let mut command = run::cargo(&arguments);
            command.args(["--", "--deny", "warnings"]).env("CARGO_PROFILE_DEV_PANIC", "abort");
            run::visibly(&mut command)
        })?;
    }
    Ok(())
}
