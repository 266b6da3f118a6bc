//! Commands for a person to watch: each says what it does and how long it took.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// Prefixes of the variables with which cargo describes the package that it runs.
const OWN_PACKAGE: [&str; 2] = ["CARGO_MANIFEST_", "CARGO_PKG_"];

/// Returns the folder of the repository.
pub(crate) fn root() -> &'static Path {
    xtask::manifests::root()
}

/// Returns the folder of cargo's builds for the host: `CARGO_TARGET_DIR` if it is set, else
/// `target`.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Returns a command that runs the cargo that started this program, in the repository.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // Remove what cargo told this program about its own package. ring's build script runs again
    // when one of these variables changes, and a third of all packages would be compiled again each
    // time.
    for (name, _) in std::env::vars_os() {
        if OWN_PACKAGE.iter().any(|beginning| name.to_string_lossy().starts_with(beginning)) {
            command.env_remove(name);
        }
    }
    command
}

/// Returns compiler flags that replace this machine's folders in what the compiler writes: panic
/// messages and debug information hold the paths of source files. So a build does not depend on
/// where the checkout, the build folder and cargo's registry lie.
///
/// `builds` is the build's target folder.
pub(crate) fn path_flags(builds: &Path) -> Vec<String> {
    let home = |variable: &str, usual: &str| {
        let named = std::env::var_os(variable).map(PathBuf::from);
        named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(usual)))
    };
    let (cargo, rustup) = (home("CARGO_HOME", ".cargo"), home("RUSTUP_HOME", ".rustup"));
    // Where two folders match, the last one counts.
    let folders = [
        (cargo.as_deref(), "/cargo"),
        (rustup.as_deref(), "/rustup"),
        (Some(root()), "/podwire"),
        (Some(builds), "/podwire/target"),
    ];
    let known = folders.into_iter().filter_map(|(folder, name)| Some((folder?, name)));
    known.map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display())).collect()
}

/// Sets the compiler's flags of a cargo command; they may contain spaces.
pub(crate) fn set_flags(command: &mut Command, flags: &[String]) {
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
}

/// Runs a step that may take long. Prints its name before, and its duration after.
pub(crate) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("==> {what}");
    let outcome = action();
    let word = if outcome.is_ok() { "done" } else { "failed" };
    eprintln!("    {word} after {:.1} s: {what}", start.elapsed().as_secs_f64());
    outcome
}

/// Runs a command and shows its output to the user.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.status().with_context(|| format!("start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Returns the standard output of a command that succeeds.
pub(crate) fn captured(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Returns the command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Returns whether this process runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
