//! Where the cgroup2 hierarchy is mounted.

use std::fs;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mounts";
/// A file that every cgroup except the root has (Documentation/admin-guide/cgroup-v2.rst, "Core
/// Interface Files").
const NOT_AT_THE_ROOT: &str = "cgroup.type";
/// A file that every cgroup has, the root included.
const EVERYWHERE: &str = "cgroup.controllers";

/// Returns `given` if there is one, even if it is not the hierarchy's root. Otherwise returns the
/// first mount that shows the root.
///
/// In a container with its own cgroup namespace, `/sys/fs/cgroup` is only the container's part.
/// Programs attached there would see only the container's processes. The agent's manifest must
/// therefore mount the host's `/sys/fs/cgroup` (`hostPath`), at any place.
///
/// # Errors
/// The reason why there is no such folder, as a sentence for the operator.
pub fn root(given: Option<&Path>) -> Result<PathBuf, String> {
    if let Some(given) = given {
        return match given.join(EVERYWHERE).exists() {
            true => Ok(given.to_owned()),
            false => Err(format!("--cgroup-dir {} is no cgroup2 hierarchy", given.display())),
        };
    }
    let mounts = fs::read_to_string(MOUNTS).map_err(|error| format!("read {MOUNTS}: {error}"))?;
    let (roots, parts): (Vec<_>, Vec<_>) =
        mount_points(&mounts).partition(|folder| !folder.join(NOT_AT_THE_ROOT).exists());
    match (roots.into_iter().next(), parts.first()) {
        (Some(root), _) => Ok(root),
        (None, Some(part)) => Err(format!(
            "{} shows only a part of the cgroup2 hierarchy: mount the host's /sys/fs/cgroup into the container",
            part.display()
        )),
        (None, None) => Err(format!(
            "no cgroup2 hierarchy is mounted ({MOUNTS}): mount one, for example at /sys/fs/cgroup"
        )),
    }
}

/// Returns the mount points of type cgroup2. `mounts` has one mount per line, in the kernel's
/// format (fstab(5): device, folder, type, options).
fn mount_points(mounts: &str) -> impl Iterator<Item = PathBuf> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let folder = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(folder))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_the_second_version_are_found_among_all() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
                      none /elsewhere cgroup2 rw 0 0\n";
        let found: Vec<_> = mount_points(mounts).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified"), Path::new("/elsewhere")]);
    }

    #[test]
    fn a_folder_that_is_no_hierarchy_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = root(Some(folder.path())).unwrap_err();
        assert!(refusal.contains(&folder.path().display().to_string()), "{refusal}");
    }

    #[test]
    fn what_is_given_need_not_be_the_root() {
        let folder = tempfile::tempdir().unwrap();
        for file in [EVERYWHERE, NOT_AT_THE_ROOT] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(root(Some(folder.path())).unwrap(), folder.path());
    }
}
