//! A root file system in memory, in the form that the kernel takes at boot: a cpio archive
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// Files and folders by path, without the leading slash. So a folder comes before its content.
#[derive(Default)]
pub(super) struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

struct Entry {
    mode: u32,
    content: Vec<u8>,
}

impl Initramfs {
    /// Adds a folder and its parent folders.
    pub(super) fn add_folder(&mut self, path: &Path) {
        for folder in path.ancestors() {
            self.add(folder, Entry { mode: FOLDER, content: Vec::new() });
        }
    }

    /// Adds a file and its parent folders. Every file is executable.
    pub(super) fn add_file(&mut self, path: &Path, content: Vec<u8>) {
        if let Some(folder) = path.parent() {
            self.add_folder(folder);
        }
        self.add(path, Entry { mode: PROGRAM, content });
    }

    /// Adds a file of this machine under the same path.
    pub(super) fn add_own_file(&mut self, path: &Path) -> Result<()> {
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        self.add_file(path, content);
        Ok(())
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path);
        if path != Path::new("") {
            self.entries.insert(path.to_owned(), entry);
        }
    }

    /// Returns the archive.
    pub(super) fn archive(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            append(&mut archive, number, &path.to_string_lossy(), entry);
        }
        append(&mut archive, 0, "TRAILER!!!", &Entry { mode: 0, content: Vec::new() });
        archive
    }
}

fn append(archive: &mut Vec<u8>, number: u32, name: &str, entry: &Entry) {
    // Inode number, mode, owner, group, links, time, size, two device numbers of two parts each,
    // length of the name, checksum.
    let fields = [
        number as usize,
        entry.mode as usize,
        0,
        0,
        1,
        0,
        entry.content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(&entry.content);
    pad(archive);
}

/// Pads the archive to a multiple of four bytes.
fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the names in an archive, and the sizes of the files.
    fn listed(mut archive: &[u8]) -> Vec<(String, usize)> {
        let mut entries = Vec::new();
        while !archive.is_empty() {
            let field = |at: usize| {
                usize::from_str_radix(std::str::from_utf8(&archive[6 + 8 * at..][..8]).unwrap(), 16).unwrap()
            };
            let (size, name_length) = (field(6), field(11));
            entries.push((String::from_utf8_lossy(&archive[110..110 + name_length - 1]).into_owned(), size));
            let content = (110 + name_length).next_multiple_of(4);
            archive = &archive[(content + size).next_multiple_of(4)..];
        }
        entries
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut initramfs = Initramfs::default();
        initramfs.add_file(Path::new("/a/b/c"), b"hello".to_vec());
        initramfs.add_folder(Path::new("/a"));
        let entries = [("a", 0), ("a/b", 0), ("a/b/c", 5), ("TRAILER!!!", 0)];
        assert_eq!(listed(&initramfs.archive()), entries.map(|(name, size)| (name.to_owned(), size)));
    }
}
