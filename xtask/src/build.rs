//! Builds of the BPF object and of the binaries that embed it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use anyhow::{Context as _, Result, ensure};

use xtask::image;

use crate::toolchain::{TARGET, Toolchain};
use crate::{run, setup};

/// The path from which the agent's build script reads the object.
const OBJECT: &str = "target/bpf/podwire-ebpf";
/// The file with the versions of the object's compiler and linker, one per line.
const TOOLCHAIN: &str = "target/bpf/toolchain";
/// The feature that makes the programs count their helper calls.
pub(crate) const COUNT_HELPERS: &str = "count-helpers";
/// The feature that gives the maps an artificial earlier layout. Tests upgrade from it.
pub(crate) const EARLIER_LAYOUT: &str = "earlier-layout";
/// The path from which the tests take the agent with the earlier layout.
const EARLIER_AGENT: &str = "target/earlier-layout/podwire";
/// The largest size of the plugin, in bytes. The runtime executes the plugin for every pod, so it
/// must stay small.
const PLUGIN_LIMIT: usize = 3 << 20;

/// Builds the object and the two shipped binaries: release profile, static, no dependency on system
/// libraries.
pub(crate) fn release() -> Result<()> {
    let folder = release_with(&Toolchain::ensure()?)?;
    for file in [run::root().join(OBJECT), folder.join("podwire"), folder.join("podwire-cni")] {
        println!("{:>10} {}", size_text(size(&file)?), file.display());
    }
    Ok(())
}

/// Builds the object and the two binaries, and packs the binaries into an image.
pub(crate) fn image(output: &Path) -> Result<()> {
    let binaries = release_with(&Toolchain::ensure()?)?;
    let archive = run::step("pack the image", || image::image(&binaries)?.archive())?;
    fs::write(output, &archive).with_context(|| format!("write {}", output.display()))?;
    println!("{:>10} {} ({}:{})", size_text(size(output)?), output.display(), image::REPOSITORY, image::TAG);
    Ok(())
}

/// Does the builds of [`release`], and returns the folder of the two binaries.
pub(crate) fn release_with(toolchain: &Toolchain) -> Result<PathBuf> {
    object(toolchain)?;
    let target = host_target()?;
    let mut command =
        run::cargo(&["build", "--release", "-p", "podwire", "-p", "podwire-cni", "--target", &target]);
    // With an explicit target, cargo does not pass the flags to build scripts and macros. They
    // cannot be static.
    let mut flags = run::path_flags(&run::target_dir());
    flags.push("-Ctarget-feature=+crt-static".to_owned());
    run::set_flags(&mut command, &flags);
    // A test may have chosen another object for its own builds.
    command.env_remove("PODWIRE_BPF_OBJECT");
    run::step("cargo build --release (podwire, podwire-cni, static)", || run::visibly(&mut command))?;
    let folder = run::target_dir().join(&target).join("release");
    let plugin = size(&folder.join("podwire-cni"))?;
    ensure!(plugin <= PLUGIN_LIMIT, "podwire-cni is larger than {}", size_text(PLUGIN_LIMIT));
    Ok(folder)
}

/// Builds the object if any input has changed, and writes the versions of its toolchain beside it.
pub(crate) fn object(toolchain: &Toolchain) -> Result<PathBuf> {
    let object = object_with(toolchain, "")?;
    replace_if_changed(toolchain.versions()?.as_bytes(), &run::root().join(TOOLCHAIN))?;
    Ok(object)
}

/// Builds the object with one feature of its package, or with none (`""`). The object with a
/// feature lies beside the usual one.
pub(crate) fn object_with(toolchain: &Toolchain, feature: &str) -> Result<PathBuf> {
    let (suffix, what) = match feature {
        "" => (String::new(), String::new()),
        _ => (format!("-{feature}"), format!(" ({feature})")),
    };
    // Each feature has its own target folder: in a shared one, the builds would overwrite each
    // other's result.
    let folder = run::root().join(format!("target/bpf-build{suffix}"));
    let object = run::root().join(format!("{OBJECT}{suffix}"));
    run::step(&format!("cargo build the BPF object{what}"), || {
        let mut command = toolchain.cargo_build(&folder);
        command.args(["--package", "podwire-ebpf", "--features", feature]);
        run::visibly(&mut command)
    })?;
    let built = folder.join(TARGET).join("release/podwire-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    replace_if_changed(&bytes, &object)?;
    Ok(object)
}

/// Builds the binaries for the demonstration and the tests, and returns their folder.
///
/// They use the dev profile, for three reasons:
/// - On two cores the agent compiles in a third of the time of a release build
///   (`cargo build --timings` shows both).
/// - The tests share the compiled crates.
/// - The lab measures code that runs in the kernel.
pub(crate) fn lab_binaries() -> Result<PathBuf> {
    let mut command = run::cargo(&["build", "-p", "podwire", "-p", "podwire-cni"]);
    run::step("cargo build (podwire, podwire-cni)", || run::visibly(&mut command))?;
    Ok(run::target_dir().join("debug"))
}

/// Sets up and builds everything that the demonstration needs. Returns the binaries' folder.
pub(crate) fn for_demonstration() -> Result<PathBuf> {
    object(&setup::for_demonstration()?)?;
    lab_binaries()
}

/// Sets up and builds what tests and benches need, except what `cargo test` and `cargo bench` build:
/// the tests and the two binaries.
pub(crate) fn for_tests() -> Result<()> {
    let toolchain = setup::everything()?;
    // Most of the time, the build of an object keeps one core busy.
    let earlier = std::thread::scope(|scope| {
        let counting = scope.spawn(|| object_with(&toolchain, COUNT_HELPERS));
        let earlier = scope.spawn(|| object_with(&toolchain, EARLIER_LAYOUT));
        object(&toolchain)?;
        ended(counting)?;
        ended(earlier)
    })?;
    earlier_agent(&earlier)
}

fn ended<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Builds the agent with the artificial earlier layout.
fn earlier_agent(object: &Path) -> Result<()> {
    // Which features the crates have depends on all that a command builds. This command also builds
    // a test, so it uses the same crates as the build of all tests.
    let feature = format!("podwire/{EARLIER_LAYOUT}");
    let mut command = run::cargo(&["test", "--no-run", "--test", "kube", "--features", &feature]);
    command.env("PODWIRE_BPF_OBJECT", object);
    run::step(&format!("cargo build (podwire, {EARLIER_LAYOUT})"), || run::visibly(&mut command))?;
    // The build of the tests uses the same file name, so copy this agent.
    let built = run::target_dir().join("debug/podwire");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let agent = run::root().join(EARLIER_AGENT);
    replace_if_changed(&bytes, &agent)?;
    fs::set_permissions(&agent, Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", agent.display()))
}

/// Writes a file only if its content differs: a rewritten object makes cargo compile the agent
/// again.
fn replace_if_changed(bytes: &[u8], to: &Path) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = to.parent().context("the object has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))
}

fn host_target() -> Result<String> {
    let printed = run::captured(std::process::Command::new("rustc").args(["--print", "host-tuple"]))?;
    Ok(printed.trim().to_owned())
}

/// Returns the versions of what makes the binaries, one line each: the compiler, the linker, and
/// the C library that they contain.
pub(crate) fn compiler_versions() -> Result<String> {
    let first_line = |program: &str| {
        let printed = run::captured(std::process::Command::new(program).arg("--version"))?;
        Ok(format!("{}\n", printed.lines().next().unwrap_or_default()))
    };
    ["rustc", "cc", "ldd"].into_iter().map(first_line).collect()
}

fn size(file: &Path) -> Result<usize> {
    let bytes = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len();
    Ok(usize::try_from(bytes)?)
}

/// Returns a size for people to read.
pub(crate) fn size_text(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
