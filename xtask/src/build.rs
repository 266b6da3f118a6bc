//! The BPF object, and the binaries that embed it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use xtask::image;

use crate::toolchain::{TARGET, Toolchain};
use crate::{run, setup};

/// Where the agent's build script takes the object from.
const OBJECT: &str = "target/bpf/podwire-ebpf";
/// What compiled and linked both, a line each.
const TOOLCHAIN: &str = "target/bpf/toolchain";
/// The feature with which the programs count the helpers that they call.
pub(crate) const COUNT_HELPERS: &str = "count-helpers";
/// The feature with which the maps have an artificial earlier layout, from which tests upgrade.
pub(crate) const EARLIER_LAYOUT: &str = "earlier-layout";
/// Where the tests take the agent of that layout from.
const EARLIER_AGENT: &str = "target/earlier-layout/podwire";
/// A kubelet executes the plugin for every pod: it stays small.
const PLUGIN_LIMIT: u64 = 3 << 20;

/// Builds the object and the two binaries that are shipped: released, static, without a dependency on the system.
pub(crate) fn release() -> Result<()> {
    let toolchain = Toolchain::ensure()?;
    let folder = release_with(&toolchain)?;
    let plugin = folder.join("podwire-cni");
    for file in [&run::root().join(OBJECT), &folder.join("podwire"), &plugin] {
        println!("{:>10} {}", size_text(size(file)?), file.display());
    }
    ensure!(size(&plugin)? <= PLUGIN_LIMIT, "podwire-cni is larger than {}", size_text(PLUGIN_LIMIT));
    Ok(())
}

/// Builds them and packs them into an image.
pub(crate) fn image(output: &Path) -> Result<()> {
    let binaries = release_with(&Toolchain::ensure()?)?;
    let archive = run::step("pack the image", || image::image(&binaries)?.archive())?;
    fs::write(output, &archive).with_context(|| format!("write {}", output.display()))?;
    println!("{:>10} {} ({}:{})", size_text(size(output)?), output.display(), image::REPOSITORY, image::TAG);
    Ok(())
}

/// The same, and the folder of the two.
pub(crate) fn release_with(toolchain: &Toolchain) -> Result<PathBuf> {
    object(toolchain)?;
    let target = host_target()?;
    let mut command =
        run::cargo(&["build", "--release", "-p", "podwire", "-p", "podwire-cni", "--target", &target]);
    // With an explicit target the flag is not given to build scripts and macros, which cannot be static.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", "-C target-feature=+crt-static");
    run::step("cargo build --release (podwire, podwire-cni, static)", || run::visibly(&mut command))?;
    Ok(run::target_dir().join(&target).join("release"))
}

/// Builds the object, if anything of it has changed, and leaves beside it what compiled it.
pub(crate) fn object(toolchain: &Toolchain) -> Result<PathBuf> {
    let object = object_with(toolchain, "")?;
    replace_if_changed(toolchain.versions()?.as_bytes(), &run::root().join(TOOLCHAIN))?;
    Ok(object)
}

/// The object with a feature of its package, beside the usual one, which has none.
pub(crate) fn object_with(toolchain: &Toolchain, feature: &str) -> Result<PathBuf> {
    let (suffix, what) = match feature {
        "" => (String::new(), String::new()),
        _ => (format!("-{feature}"), format!(" ({feature})")),
    };
    // Each build has a folder of its own: in one, they would put their results in the same place.
    let folder = run::root().join(format!("target/bpf-build{suffix}"));
    let object = run::root().join(format!("{OBJECT}{suffix}"));
    run::step(&format!("cargo build the BPF object{what}"), || {
        let mut command = toolchain.cargo_build();
        command.args(["--package", "podwire-ebpf", "--features", feature, "--target-dir"]).arg(&folder);
        run::visibly(&mut command)
    })?;
    let built = folder.join(TARGET).join("release/podwire-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    replace_if_changed(&bytes, &object)?;
    Ok(object)
}

/// The binaries of the demonstration and the tests, and their folder.
///
/// The dev profile: on two cores the agent takes a third of the time that a release build takes (`cargo build --timings`
/// shows both), the tests share what is compiled, and what the lab measures runs in the kernel.
pub(crate) fn lab_binaries() -> Result<PathBuf> {
    let mut command = run::cargo(&["build", "-p", "podwire", "-p", "podwire-cni"]);
    run::step("cargo build (podwire, podwire-cni)", || run::visibly(&mut command))?;
    Ok(run::target_dir().join("debug"))
}

/// Everything that the demonstration stands on.
pub(crate) fn for_lab() -> Result<()> {
    object(&setup::everything()?).map(|_| ())
}

/// Everything that tests and benches stand on.
pub(crate) fn for_tests() -> Result<()> {
    let toolchain = setup::everything()?;
    object_with(&toolchain, COUNT_HELPERS)?;
    object(&toolchain)?;
    earlier_agent(&object_with(&toolchain, EARLIER_LAYOUT)?)
}

/// The agent of the artificial earlier layout, beside today's.
fn earlier_agent(object: &Path) -> Result<()> {
    let mut command = run::cargo(&["build", "-p", "podwire", "--features", EARLIER_LAYOUT]);
    command.env("PODWIRE_BPF_OBJECT", object);
    run::step(&format!("cargo build (podwire, {EARLIER_LAYOUT})"), || run::visibly(&mut command))?;
    // The next build puts today's agent there: both builds name their result alike.
    let built = run::target_dir().join("debug/podwire");
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    let agent = run::root().join(EARLIER_AGENT);
    replace_if_changed(&bytes, &agent)?;
    fs::set_permissions(&agent, Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", agent.display()))?;
    lab_binaries().map(drop)
}

/// A file that is written anew has the agent compiled anew.
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

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len())
}

fn size_text(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
