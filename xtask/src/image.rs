//! Podwire's own image. It contains the two static binaries and their licences only.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::archive::File;
use crate::oci::Image;

/// The image's name in manifests, without the tag.
pub const REPOSITORY: &str = "podwire/podwire";
/// The tag of this release.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
/// The registry that runtimes put before an image name without a registry. They look for the full
/// name.
const REGISTRY: &str = "docker.io";

const LICENCES: [(&str, &str); 2] = [
    ("licenses/LICENSE", include_str!("../../LICENSE")),
    ("licenses/LICENSE-GPL-2.0", include_str!("../../LICENSE-GPL-2.0")),
];

/// Makes the image from `podwire` and `podwire-cni` in a folder. Both must be static.
///
/// # Errors
/// When one of the two cannot be read.
pub fn image(binaries: &Path) -> Result<Image> {
    let mut files = BTreeMap::new();
    for name in ["podwire", "podwire-cni"] {
        let path = binaries.join(name);
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(name.to_owned(), File::program(content));
    }
    files.extend(LICENCES.map(|(path, text)| (path.to_owned(), File::text(text))));
    let config = json!({
        "Entrypoint": ["/podwire"],
        "Labels": {
            "org.opencontainers.image.title": "podwire",
            "org.opencontainers.image.description": "Kubernetes pod networking with eBPF",
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            "org.opencontainers.image.version": TAG,
        },
    });
    Ok(Image { name: format!("{REGISTRY}/{REPOSITORY}:{TAG}"), files, config })
}
