//! Podwire's own image. It contains the two static binaries and the licences, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::archive::File;
use crate::licences;
use crate::oci::Image;

/// The image's name in manifests, without the tag.
pub const REPOSITORY: &str = "podwire/podwire";
/// The tag of this release.
pub const TAG: &str = env!("CARGO_PKG_VERSION");
/// The registry that runtimes put before an image name without a registry. They look for the full
/// name.
const REGISTRY: &str = "docker.io";

/// The names of the shipped binaries.
pub const BINARIES: [&str; 2] = ["podwire", "podwire-cni"];

/// Returns the licences that go with the binaries, by file name.
///
/// # Errors
/// Those of [`licences::third_party`].
pub fn licence_texts() -> Result<BTreeMap<&'static str, String>> {
    Ok(BTreeMap::from([
        ("LICENSE", include_str!("../../LICENSE").to_owned()),
        ("LICENSE-GPL-2.0", include_str!("../../LICENSE-GPL-2.0").to_owned()),
        ("THIRD-PARTY-LICENSES", licences::third_party()?),
    ]))
}

/// Makes the image from `podwire` and `podwire-cni` in a folder. Both must be static.
///
/// # Errors
/// When one of the two cannot be read, and those of [`licence_texts`].
pub fn image(binaries: &Path) -> Result<Image> {
    let mut files = BTreeMap::new();
    for name in BINARIES {
        let path = binaries.join(name);
        let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(name.to_owned(), File::program(content));
    }
    let licences = licence_texts()?;
    files.extend(licences.into_iter().map(|(name, text)| (format!("licenses/{name}"), File::text(text))));
    let config = json!({
        "Entrypoint": ["/podwire"],
        // So `kubectl exec` finds the program without its folder.
        "Env": ["PATH=/"],
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
