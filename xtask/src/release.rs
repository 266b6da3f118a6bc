//! `cargo xtask release`: what a release consists of, as files in one folder.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use xtask::archive::{File, compressed, pack};
use xtask::image::{self, BINARIES, TAG};
use xtask::manifests;

use crate::toolchain::Toolchain;
use crate::{build, run};

/// The file with the checksums of all others, as `sha256sum --check` reads it.
const CHECKSUMS: &str = "SHA256SUMS";

/// Builds everything and writes it into the folder.
///
/// # Errors
/// When the folder is not empty, or a build fails.
pub(crate) fn make(output: &Path) -> Result<()> {
    ensure_empty(output)?;
    let toolchain = Toolchain::ensure()?;
    let binaries = build::release_with(&toolchain)?;
    let mut files = run::step("pack the release", || packed(&binaries))?;
    let compilers = format!("{}{}", build::compiler_versions()?, toolchain.versions()?);
    files.insert("TOOLCHAIN".to_owned(), File::text(compilers));
    files.insert(CHECKSUMS.to_owned(), File::text(checksums(&files)));
    for (name, file) in &files {
        let path = output.join(name);
        fs::write(&path, &file.content).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(file.mode))
            .with_context(|| format!("set the permissions of {}", path.display()))?;
        println!("{:>10} {}", build::size_text(file.content.len()), path.display());
    }
    Ok(())
}

/// A file that an earlier release left would look like a part of this one.
fn ensure_empty(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    ensure!(entries.next().is_none(), "{} is not empty: name an empty or a new folder", folder.display());
    Ok(())
}

/// Returns the files of a release by name, without the checksums.
fn packed(binaries: &Path) -> Result<BTreeMap<String, File>> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut files = BTreeMap::new();
    for name in BINARIES {
        let path = binaries.join(name);
        let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(format!("{name}-{TAG}-linux-{architecture}"), File::program(content));
    }
    let image = image::image(binaries)?.archive()?;
    files.insert(format!("podwire-{TAG}-image-{architecture}.tar"), File::text(image));
    for name in ["podwire.yaml", "uninstall.yaml"] {
        let path = run::root().join("manifests").join(name);
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(name.to_owned(), File::text(text));
    }
    let script = run::root().join("manifests/kubectl-podwire");
    let text = fs::read(&script).with_context(|| format!("read {}", script.display()))?;
    files.insert("kubectl-podwire".to_owned(), File::program(text));
    files.insert(format!("podwire-{TAG}.tgz"), File::text(chart()?));
    for (name, text) in image::licence_texts()? {
        files.insert(name.to_owned(), File::text(text));
    }
    Ok(files)
}

/// Returns the chart as `helm package` packs it: all files in a folder with the chart's name.
fn chart() -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    collect(&manifests::chart(), "podwire", &mut files)?;
    compressed(&pack(&files)?)
}

fn collect(folder: &Path, name: &str, files: &mut BTreeMap<String, File>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{name}/{file}");
        if file.starts_with('.') || file.ends_with('~') {
            bail!("{} is no part of the chart: remove it", path.display());
        }
        if path.is_dir() {
            collect(&path, &name, files)?;
        } else {
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            files.insert(name, File::text(text));
        }
    }
    Ok(())
}

fn checksums(files: &BTreeMap<String, File>) -> String {
    let lines = files.iter().map(|(name, file)| {
        let hash = Sha256::digest(&file.content);
        let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digits}  {name}\n")
    });
    lines.collect()
}
