//! Debian's kernels, unpacked below `target`. None is installed: this machine keeps its kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Files, Kernel};
use crate::{packages, run};

/// Fetches the newest kernel of a line, unless one has been fetched before.
pub(super) fn fetch(kernel: Kernel) -> Result<Files> {
    let folder = run::target_dir().join(format!("kernels/{kernel}"));
    if !folder.is_dir() {
        run::step(&format!("fetch Debian's Linux {kernel}"), || {
            // Without package lists, apt knows no kernel. Old lists name a kernel that Debian has
            // removed.
            unpack(kernel, &folder).or_else(|_| {
                packages::update()?;
                unpack(kernel, &folder)
            })
        })?;
    }
    Ok(Files {
        image: only(&folder.join("boot"), "vmlinuz-")?,
        modules: only(&folder.join("lib/modules"), kernel.version())?.join("kernel"),
    })
}

fn unpack(kernel: Kernel, to: &Path) -> Result<()> {
    let names = run::captured(Command::new("apt-cache").args(["pkgnames", &prefix(kernel)]))?;
    let package = newest(kernel, &names).with_context(|| {
        format!("apt knows no linux-image-{kernel}.*-cloud-amd64 (Debian 12 has it in bookworm-security)")
    })?;
    let unfinished = to.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished).with_context(|| format!("create {}", unfinished.display()))?;
    let mut download = Command::new("apt-get");
    // Run as root: apt's own user may not write to this folder.
    download.args(["download", "--quiet", "--quiet", "-o", "APT::Sandbox::User=root", package]);
    run::visibly(download.current_dir(&unfinished))?;
    let archive = only(&unfinished, package)?;
    run::visibly(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&unfinished))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    fs::rename(&unfinished, to).with_context(|| format!("rename {}", unfinished.display()))
}

fn prefix(kernel: Kernel) -> String {
    format!("linux-image-{kernel}.")
}

/// Returns the package with the highest version. `-dbg` and `-unsigned` are other packages.
fn newest(kernel: Kernel, names: &str) -> Option<&str> {
    let version = |name: &&str| -> Vec<u32> {
        let rest = name.strip_prefix(&prefix(kernel)).unwrap_or_default();
        rest.split(|character: char| !character.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    names.lines().filter(|name| name.ends_with("-cloud-amd64")).max_by_key(version)
}

/// Returns the one file or folder in `folder` with a name that starts with `beginning`.
fn only(folder: &Path, beginning: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(beginning) {
            return Ok(entry.path());
        }
    }
    bail!("{} has no {beginning}*: remove {0}, and the next run fetches it again", folder.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64-unsigned\n\
                     linux-image-6.1.0-50-cloud-amd64\nlinux-image-6.1.0-55-cloud-amd64-dbg\nlinux-image-6.1.0-60-amd64\n";
        assert_eq!(newest(Kernel::Linux6_1, names), Some("linux-image-6.1.0-50-cloud-amd64"));
        let names = "linux-image-6.12.99+deb12-cloud-amd64\nlinux-image-6.12.117+deb12-cloud-amd64\n";
        assert_eq!(newest(Kernel::Linux6_12, names), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Kernel::Linux6_12, ""), None);
    }
}
