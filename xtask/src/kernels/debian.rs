//! Debian's kernels, unpacked below `target`. None is installed: this machine keeps its kernel.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Files, Kernel};
use crate::packages::{self, only};
use crate::run;

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
    packages::unpack(package, to)
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
