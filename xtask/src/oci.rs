//! Container images as archives in OCI's image layout (OCI Image Format Specification 1.1,
//! image-layout.md). Runtimes import them without a registry or an engine.
//!
//! An image has one layer. Two builds of the same files are identical: all times are 0, all owners
//! are root, and names are sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// The annotation with the name under which containerd stores the image. Without it, containerd
/// takes the tag alone as the name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image that is made of files only.
pub struct Image {
    /// Name with registry and tag, as the runtime's interface asks for it:
    /// `registry/owner/name:tag`.
    pub name: String,
    /// Files by their path from the root, without the leading slash.
    pub files: BTreeMap<String, File>,
    /// The image's entrypoint, labels and so on: `config` of the specification's config.md
    /// (`Entrypoint`, `Labels`, …).
    pub config: Value,
}

/// A file in an image.
pub struct File {
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Vec<u8>,
}

/// A part of the layout, stored under its hash.
struct Blob {
    digest: String,
    content: Vec<u8>,
}

impl Image {
    /// Packs the image into an archive.
    ///
    /// # Errors
    /// When the name has no registry or no tag, or a path is too long for the archive format.
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
    /// Makes a file that is only read.
    pub fn text(content: impl Into<Vec<u8>>) -> Self {
        Self { mode: 0o644, content: content.into() }
    }

    /// Makes a file that is executed.
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

/// Packs the files and their parent folders.
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

/// Compresses with the fastest level: the archive is a tenth larger than with the best one, but
/// takes a quarter of the time.
fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
