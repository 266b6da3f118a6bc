//! Container images as archives in OCI's image layout, which runtimes import without a registry or an engine (OCI Image Format
//! Specification 1.1, image-layout.md).
//!
//! One layer, and nothing in it that differs between two builds of the same files: times are 0, owners are root, names are sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Under which containerd keeps the image. Otherwise it would take the tag alone for its name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image that is made of files and of nothing else.
pub struct Image {
    /// With its registry and its tag, as the runtime's interface asks for it: `registry/owner/name:tag`.
    pub name: String,
    /// By path from the root, without the first slash.
    pub files: BTreeMap<String, File>,
    /// What is run and what the image says of itself: `config` of the specification's config.md (`Entrypoint`, `Labels`, …).
    pub config: Value,
}

/// A file in an image.
pub struct File {
    /// Permissions.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

/// A part of the layout, kept by its hash.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Image {
    /// The archive.
    ///
    /// # Errors
    /// When the name has no tag, or a path is longer than an archive can have.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let (repository, tag) = self.name.rsplit_once(':').context("the image's name has no tag")?;
        ensure!(!tag.contains('/') && repository.contains('/'), "`{}` lacks registry or tag", self.name);
        let uncompressed = pack(&self.files)?;
        let layer = Blob::new(compressed(&uncompressed)?);
        let config = Blob::of(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": [digest(&uncompressed)] },
        }));
        let manifest = Blob::of(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": [layer.descriptor(LAYER)],
        }));
        let mut entry = manifest.descriptor(MANIFEST);
        entry["annotations"] = json!({ CONTAINERD_NAME: self.name, REFERENCE_NAME: tag });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] });

        let mut files = BTreeMap::from([
            ("oci-layout".to_owned(), File::text(json!({ "imageLayoutVersion": "1.0.0" }).to_string())),
            ("index.json".to_owned(), File::text(index.to_string())),
        ]);
        for blob in [layer, config, manifest] {
            let path = format!("blobs/{}", blob.digest.replace(':', "/"));
            files.insert(path, File { mode: 0o644, content: blob.content });
        }
        pack(&files)
    }
}

impl File {
    /// To be read.
    pub fn text(content: impl Into<Vec<u8>>) -> Self {
        Self { mode: 0o644, content: content.into() }
    }

    /// To be executed.
    pub fn program(content: impl Into<Vec<u8>>) -> Self {
        Self { mode: 0o755, content: content.into() }
    }
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: digest(&content), content }
    }

    fn of(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.content.len() })
    }
}

/// The files with the folders above them.
fn pack(files: &BTreeMap<String, File>) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    for (path, file) in files {
        let above: Vec<&Path> = Path::new(path).ancestors().skip(1).collect();
        for folder in above.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            if folders.insert(folder.to_owned()) {
                archive.append_data(&mut header(EntryType::Directory, 0o755, 0), folder, &[][..])?;
            }
        }
        let mut header = header(EntryType::Regular, file.mode, u64::try_from(file.content.len())?);
        archive.append_data(&mut header, path, &*file.content).with_context(|| format!("pack {path}"))?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Quickly: the archive is a tenth larger than it could be, and made in a quarter of the time.
fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
