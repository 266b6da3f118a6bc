//! Container images as archives in OCI's image layout (OCI Image Format Specification 1.1,
//! image-layout.md). Runtimes import them without a registry or an engine.
//!
//! An image has one layer. Two builds of the same files are identical: all times are 0, all owners
//! are root, and names are sorted.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::{File, compressed, pack};

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

fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
