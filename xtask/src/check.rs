//! `cargo xtask check`: formatting, lints, layer rules, documents, licences.

use anyhow::{Context as _, Result};
use xtask::licences;

use crate::toolchain::Toolchain;
use crate::{build, documents, layers, run};

/// Runs all checks, and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    // The agent embeds the object. Without the object, the agent's build script fails and clippy
    // cannot run.
    build::object(&Toolchain::ensure()?)?;
    run::step("cargo fmt --check", || {
        run::visibly(&mut run::cargo(&["fmt", "--all", "--check"])).context("run `cargo fmt --all`")
    })?;
    run::step("layer rules", layers::check)?;
    run::step("documents", documents::check)?;
    run::step("licences", licences::check)?;
    run::step("cargo clippy", || {
        run::visibly(&mut run::cargo(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    // Clippy checks the object's crate for the host, because not every BPF toolchain has clippy.
    // The crate must abort on panic, as the object does in the kernel.
    for features in ["", build::COUNT_HELPERS, build::EARLIER_LAYOUT] {
        run::step(&format!("cargo clippy (BPF object, features: {features:?})"), || {
            let arguments = ["clippy", "--quiet", "--package", "podwire-ebpf", "--features", features];
            let mut command = run::cargo(&arguments);
            command.args(["--", "--deny", "warnings"]).env("CARGO_PROFILE_DEV_PANIC", "abort");
            run::visibly(&mut command)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    /// This fails when a page names a test that was renamed or removed.
    #[test]
    fn every_test_that_a_page_of_tests_names_exists() {
        let root = crate::run::root();
        let mut functions = BTreeSet::new();
        for folder in ["agent", "cni-shim", "common", "xtask"] {
            find_functions(&root.join(folder), &mut functions);
        }
        // The column of the tests, and fewer tests than the page has.
        for (page, column, some) in [("docs/attacks.md", 2, 50), ("docs/design/kubernetes-cases.md", 1, 30)] {
            let table = fs::read_to_string(root.join(page)).unwrap();
            let rows = table.lines().filter(|line| line.starts_with("| "));
            let tests = rows
                .filter_map(|row| row.split(" | ").nth(column))
                .flat_map(|cell| cell.split('`').skip(1).step_by(2));
            let named: BTreeSet<&str> = tests.collect();
            let missing: Vec<_> = named.iter().filter(|name| !functions.contains(**name)).collect();
            assert!(missing.is_empty(), "{page} names tests that do not exist: {missing:?}");
            assert!(named.len() > some, "{page} was not read: {named:?}");
        }
    }

    fn find_functions(folder: &Path, functions: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                find_functions(&path, functions);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let names = text
                    .lines()
                    .filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn "));
                functions.extend(names.filter_map(|rest| rest.split('(').next()).map(str::to_owned));
            }
        }
    }
}
