//! The toolchain of the BPF object: rustup's nightly, or Debian's rustc with its prebuilt core
//! library.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::{packages, run};

/// The object's target.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The oldest bpf-linker known to emit BTF that both the kernel and aya accept.
const LINKER_VERSION: Version = Version(0, 13, 0);
/// The oldest Debian rustc that compiles the workspace's edition and the features that the BPF
/// crates use.
const DEBIAN_RUSTC_VERSION: Version = Version(1, 96, 0);
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The compiler and the linker of the object.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compiler {
    /// rustup's nightly with `rust-src`. It compiles the core library together with the object.
    Nightly,
    /// `rustc-web`, with the prebuilt core library of `libstd-rust-web-dev-bpf`.
    Debian,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32, u32);

impl Toolchain {
    /// Finds a toolchain, or installs Debian's. The versions of Debian's packages fit each other. A
    /// nightly needs a linker with an LLVM that is at least as new as its own.
    ///
    /// # Errors
    /// When there is no toolchain and none can be installed. The message says what to do.
    pub(crate) fn ensure() -> Result<Self> {
        if let Some(linker) = find_linker()
            && let Some(compiler) = find_compiler()
        {
            return Ok(Self { compiler, linker });
        }
        if !packages::can_install() {
            bail!(instructions());
        }
        install_debian_compiler()?;
        let linker = match find_linker() {
            Some(linker) => linker,
            None => install_linker()?,
        };
        Ok(Self { compiler: Compiler::Debian, linker })
    }

    /// Returns a `cargo build` command for the object, with this target folder. The caller adds the
    /// package.
    pub(crate) fn cargo_build(&self, builds: &Path) -> Command {
        let mut command = match self.compiler {
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
                command.env_remove("RUSTC").env_remove("CARGO");
                command
            }
            Compiler::Debian => {
                let mut command = run::cargo(&["build"]);
                // The BPF crates use unstable features, but the compiler is a stable release.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        // The last flag turns off an LLVM option that the linker sets by default: to expand copies
        // in order. With that option, LLVM fills every zeroed value through a call, byte by byte.
        let mut flags = run::path_flags(builds);
        flags.extend(["-Cdebuginfo=2".to_owned(), format!("-Clinker={}", self.linker.display())]);
        flags.extend(["-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"].map(str::to_owned));
        run::set_flags(&mut command, &flags);
        command.current_dir(run::root()).args(["--release", "--target", TARGET, "--target-dir"]).arg(builds);
        command
    }

    /// Returns the versions of the compiler and the linker, one line each.
    ///
    /// # Errors
    /// When the compiler or the linker does not run.
    pub(crate) fn versions(&self) -> Result<String> {
        let mut compiler = match self.compiler {
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Compiler::Debian => Command::new(DEBIAN_RUSTC),
        };
        let compiler = run::captured(compiler.arg("--version"))?;
        let linker = run::captured(Command::new(&self.linker).arg("--version"))?;
        Ok(format!("{}\n{}\n", compiler.trim(), linker.trim()))
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiler = match self.compiler {
            Compiler::Nightly => "rustup's nightly with rust-src",
            Compiler::Debian => "Debian's rustc with its core library for BPF",
        };
        write!(f, "{compiler}, {}", self.linker.display())
    }
}

fn find_compiler() -> Option<Compiler> {
    // Look for Debian's compiler first: the search costs nothing, and its version does not change
    // daily.
    if debian_is_complete() {
        Some(Compiler::Debian)
    } else if nightly_has_source() {
        Some(Compiler::Nightly)
    } else {
        None
    }
}

fn debian_is_complete() -> bool {
    packages::BPF_TOOLCHAIN.iter().all(packages::Package::is_present)
        && program_version(Command::new(DEBIAN_RUSTC)).is_some_and(|version| version >= DEBIAN_RUSTC_VERSION)
}

fn nightly_has_source() -> bool {
    // `cargo +nightly` would make rustup install a nightly. This command only asks for one.
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    run::captured(&mut command)
        .is_ok_and(|sysroot| PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// Returns the user's linker if it is new enough, else the one that an earlier set-up built.
fn find_linker() -> Option<PathBuf> {
    packages::find_program("bpf-linker")
        .into_iter()
        .chain([own_linker()])
        .find(|linker| program_version(Command::new(linker)).is_some_and(|version| version >= LINKER_VERSION))
}

/// Returns the path of the linker that the set-up builds. It is in `target`: it replaces none of
/// the user's programs, and `cargo clean` removes it.
fn own_linker() -> PathBuf {
    own_tools().join("bin/bpf-linker")
}

fn own_tools() -> PathBuf {
    run::root().join("target/tools")
}

fn install_debian_compiler() -> Result<()> {
    if debian_is_complete() {
        return Ok(());
    }
    // Install also packages that are there but too old: `apt-get install` upgrades them.
    let names = packages::BPF_TOOLCHAIN.each_ref().map(packages::Package::name);
    run::step(&format!("apt-get install {}", names.join(" ")), || packages::install(&names))?;
    ensure!(
        debian_is_complete(),
        "apt has no rustc-web of version {DEBIAN_RUSTC_VERSION} or later (Debian 12 has it in bookworm-security)\n\n{}",
        instructions()
    );
    Ok(())
}

fn install_linker() -> Result<PathBuf> {
    packages::ensure(&packages::LINKER_BUILD)?;
    run::step(&format!("cargo install bpf-linker {LINKER_VERSION} (about a minute)"), || {
        let version = LINKER_VERSION.to_string();
        // LLVM does the linker's work. The rest needs no optimisation, and builds faster without.
        let mut command =
            run::cargo(&["install", "--debug", "--locked", "bpf-linker", "--version", &version]);
        command
            .args(["--no-default-features", "--features", "llvm-22", "--root"])
            .arg(own_tools())
            .env("LLVM_PREFIX", LLVM_PREFIX);
        run::visibly(&mut command)
    })?;
    find_linker().context("bpf-linker was installed, but does not run")
}

fn instructions() -> String {
    let names: Vec<&str> =
        packages::BPF_TOOLCHAIN.iter().chain(&packages::LINKER_BUILD).map(packages::Package::name).collect();
    format!(
        "the toolchain of the BPF object is not there. Either, on Debian as root:\n\n    \
         {}\n    \
         LLVM_PREFIX={LLVM_PREFIX} cargo install bpf-linker --version {LINKER_VERSION} --locked --no-default-features --features llvm-22\n\n\
         or, anywhere:\n\n    \
         rustup toolchain install nightly --profile minimal --component rust-src\n    \
         cargo binstall bpf-linker    (or a release of https://github.com/aya-rs/bpf-linker, {LINKER_VERSION} or later)\n",
        packages::commands(&names)
    )
}

/// Returns the first version number that `--version` prints.
fn program_version(mut command: Command) -> Option<Version> {
    run::captured(command.arg("--version")).ok().and_then(|printed| Version::find(&printed))
}

impl Version {
    fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let mut parts = word.split(['.', '-', '+']).map(str::parse);
            Some(Self(parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_print() {
        for (printed, version) in [
            ("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)", Version(1, 96, 0)),
            ("bpf-linker 0.13.0", Version(0, 13, 0)),
            ("rustc 1.97.1-nightly (f00 2026-06-01)", Version(1, 97, 1)),
        ] {
            assert_eq!(Version::find(printed), Some(version), "{printed}");
        }
        assert_eq!(Version::find("no number"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version(1, 100, 0) > Version(1, 96, 2));
        assert!(Version(0, 9, 15) < LINKER_VERSION);
    }
}
